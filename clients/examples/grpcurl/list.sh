#!/bin/sh
# Shows what the server offers, by reflection, and the models that it runs.
set -eu
target=${SPYGLASS_GRPC:-127.0.0.1:50051}

grpcurl -plaintext "$target" list
grpcurl -plaintext "$target" describe spyglass.v1.InferenceService
grpcurl -plaintext -H "authorization: Bearer $SPYGLASS_API_KEY" "$target" spyglass.v1.InferenceService/ListModels
