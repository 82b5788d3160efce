"""What a modality is made of: tokens and their layout, normalised text."""
