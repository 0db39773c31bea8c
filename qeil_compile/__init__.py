"""qeil_compile: partition a network over CPU, GPU and NPU by time and energy."""
