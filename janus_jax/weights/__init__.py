"""Every way in which parameters get into a model and out of it.

`open_model.open_model` opens a model folder of any layout as a `reader.ModelReader`, `load.load_params` loads its
parameters, and `write_model.write_model` writes it in any layout.
"""
