"""The server: hoisted models behind HTTP, by JSON and by the Open Inference Protocol v2 (extra `serve`)."""
