"""How a model is computed: programs made of the modules of mtl.model, the kernels in them, threads and cores."""
