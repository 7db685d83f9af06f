"""What runs beside a user: the model repository over the Open Inference Protocol, and a page to draw on."""
