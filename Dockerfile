# The package for GPU clusters. torch's wheels bring the CUDA libraries; Triton needs a C compiler and Python's headers.
# No test builds this file.
#   docker build -t aim-lightning --build-arg AIM_COMMIT=$(git describe --always --dirty --abbrev=12) .
#   apptainer build aim.sif docker-daemon://aim-lightning:latest
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/aim
ENV PATH=/opt/aim/bin:$PATH
COPY . /opt/aim_lightning
RUN pip install --no-cache-dir '/opt/aim_lightning[app,dinov2]'
# Records contain the commit; the image has no repository.
ARG AIM_COMMIT=unknown
ENV AIM_COMMIT=$AIM_COMMIT
# Mount a checkout or a directory with data/, weights/ and runs/ here.
WORKDIR /workspace
CMD ["aim-lightning", "--help"]
