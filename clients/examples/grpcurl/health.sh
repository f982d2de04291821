#!/bin/sh
# Asks the server for its health.
set -eu

grpcurl -plaintext "${SPYGLASS_GRPC:-127.0.0.1:50051}" grpc.health.v1.Health/Check
