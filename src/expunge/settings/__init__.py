"""What a method or a model is run with: presets by kind of model, and settings put together from layers."""
