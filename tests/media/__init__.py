"""What real tools write: files of their making, and what the library makes of them."""
