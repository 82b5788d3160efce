"""Networks: towers, zips, and the models that join them. No Lightning in this package."""
