"""From annotated images to training batches."""
