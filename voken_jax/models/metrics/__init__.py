"""Networks of metrics: FID's Inception and I3D as functions of published weights."""
