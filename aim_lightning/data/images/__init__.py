"""Images: where they come from, how they are stored, what is done to them."""
