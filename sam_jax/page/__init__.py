"""A page to click in, and masks over HTTP: `sam-jax page`.

The server is FastAPI's (`pip install "sam-jax[page]"`), the page plain JavaScript in `static/`. The room may use the
predictor and what stands below it.
"""
