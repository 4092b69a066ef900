"""From a model to the formats of other runtimes. Needs the extra ``onnx``."""
