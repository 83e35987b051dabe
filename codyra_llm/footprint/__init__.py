"""What a run will hold, move and write, known from the model's configuration alone: before any GPU is rented."""
