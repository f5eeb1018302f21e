#!/bin/sh
# Ask `vl2 serve` whatever its own OpenAPI description allows, and what it forbids, with schemathesis (extra `fuzz`):
# no answer may be a 5xx, and every answer must be one that the description names.
#
#   benchmarks/fuzz_api.sh            # about a minute and a half on two cores
#   MAX_EXAMPLES=20 benchmarks/fuzz_api.sh
#
# PYTHON and SCHEMATHESIS name the interpreter with vl2 and the program, where they are not in .venv.
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
SCHEMATHESIS=${SCHEMATHESIS:-.venv/bin/schemathesis}
PORT=${PORT:-8765}
"$PYTHON" -c 'import sys; from vl2.cli.main import main; main(sys.argv[1:])' \
    serve --port "$PORT" --log-level warning --no-urls --default-max-tokens 4 &
server=$!
trap 'kill $server; wait $server || true' EXIT
until "$PYTHON" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$PORT/ready')" 2>/dev/null; do
    kill -0 $server
    sleep 1
done
# The name of the model is put in, or nearly all requests would end there.
PYTHONPATH=benchmarks${PYTHONPATH:+:$PYTHONPATH} SCHEMATHESIS_HOOKS=fuzz_hooks "$SCHEMATHESIS" run "http://127.0.0.1:$PORT/openapi.json" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance \
    --max-examples "${MAX_EXAMPLES:-100}" --request-timeout 120 --seed 1 --generation-maximize response_time
