"""What measures the library, and what writes the measurements down."""
