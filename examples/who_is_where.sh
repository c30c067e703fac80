#!/bin/sh
# Who is in view of which camera, with mosquitto_sub and jq: sh who_is_where.sh HOST PORT
# Prints one JSON line per change: the device, then each person with the camera. The retained `present` has
# everyone after the event `seq`; events with higher numbers are applied to it. So the state is right through
# corrections, missing events, restarts of the agent, and restarts of this script.
set -eu
mosquitto_sub -h "${1:-127.0.0.1}" -p "${2:-1883}" -V mqttv5 -i example-where-shell -c -x 86400 -q 1 \
    -t 'edge/v1/+/+/identity/+' -t 'edge/v1/+/+/person/+' -t 'edge/v1/+/+/present' |
jq --unbuffered -cn '
  def track($session): "\($session)/\(.camera)/\(.track_id)";

  def apply($event): $event.data as $data |
    if $event.type == "edge.person.\($data.kind).v1" then
      map_values(
        if .identity_id != null and (.identity_id == $data.identity_id or .identity_id == $data.absorbed_id)
        then .identity_id = (if $data.kind == "forgotten" then null else $data.identity_id end) | .name = $data.name
        else . end)
    else
      ($data | track($event.session)) as $key
      | if $data.ended then del(.[$key]) else .[$key] = ($data | {camera, identity_id, name}) end
    end;

  def people: reduce (.later | to_entries | sort_by(.key | tonumber) | .[].value) as $event (.people; apply($event));

  def take($message): $message.data as $data |
    if $message.type == "edge.present.v1" then
      (if $data.omitted > 0 then people else {} end) as $before
      | .seq = $data.seq
      | .later |= with_entries(select((.key | tonumber) > $data.seq and .value.session == $message.session))
      | .people = ($before | with_entries(select(.key | startswith("\($message.session)/"))))
      | .people += ([$data.people[] | {key: track($message.session), value: .}] | from_entries)
    elif $message.seq > .seq then .later["\($message.seq)"] = $message
    else . end;

  foreach inputs as $message ({devices: {}, last: {}};
    .source = $message.source
    | .devices[.source] = ((.devices[.source] // {seq: 0, people: {}, later: {}}) | take($message))
    | .line = [.source, (.devices[.source] | people | map([.camera, .name // .identity_id]) | sort)]
    | .new = (.last[.source] != .line)
    | .last[.source] = .line;
    select(.new) | .line
  )
'
