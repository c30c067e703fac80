#!/bin/sh
# Identity events as lines of text, with mosquitto_sub and jq: sh subscriber.sh HOST PORT
# -i and -c keep the subscription while the script is away; -q 1 makes the broker repeat unacknowledged messages.
# Repeated deliveries are dropped by id, of which the last 10,000 are kept.
set -eu
mosquitto_sub -h "${1:-127.0.0.1}" -p "${2:-1883}" -V mqttv5 -i example-shell -c -x 86400 -q 1 \
    -t 'edge/v1/+/+/identity/+' -t 'edge/v1/+/+/person/+' -t 'edge/v1/+/+/gap' |
jq --unbuffered -rn '
  foreach inputs as $event ({ids: [], new: true};
    .new = (.ids | index($event.id) | not)
    | if .new then .ids = ([$event.id] + .ids)[:10000] else . end;
    select(.new) | $event
  )
  | .data as $data
  | if .type == "edge.gap.v1"
    then "\(.time) \(.source) lost \($data.count) events: \($data.reason)"
    elif $data.camera == null
    then "\(.time) \(.source) \(.seq) \($data.kind) \($data.absorbed_id // "") \($data.identity_id) \($data.name // "")"
    else "\(.time) \(.source) \(.seq) \($data.camera): \($data.kind) \(
        if $data.kind == "corrected" then "\($data.previous_identity_id // "somebody") -> " else "" end
      )\($data.name // $data.identity_id // "somebody") \($data.score)"
    end
'
