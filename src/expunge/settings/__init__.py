"""What a method or a model is run with: presets by kind of model, settings put together from layers, and read from sources."""
