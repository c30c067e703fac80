"""The operator's page: a web server of its own that shows what the agent does and passes on what people want.

It never changes the gallery itself. `link` asks the running agent; `guard` and `sessions` decide who may.
"""
