"""The networks: a tower, a zip, and the Zipper that joins towers by zips. No Lightning here."""
