"""What only the notebooks in beyond/ need."""
