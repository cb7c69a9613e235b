-- What wrk sends and how it reports: wrk ... -s load.lua URL -- METHOD BODYFILE "Name: value"...
-- BODYFILE is "" for a request without a body.

function init(args)
  wrk.method = args[1]
  if args[2] ~= "" then
    local file = assert(io.open(args[2], "rb"))
    wrk.body = file:read("*a")
    file:close()
  end
  for i = 3, #args do
    local name, value = args[i]:match("^([^:]+): (.*)$")
    wrk.headers[name] = value
  end
end

-- One line of JSON; times are in microseconds.
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"micros":%d,"requests":%d,"bytes":%d,"p50":%d,"p99":%d,' ..
    '"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}\n',
    summary.duration, summary.requests, summary.bytes,
    latency:percentile(50), latency:percentile(99),
    e.status, e.connect, e.read, e.write, e.timeout))
end
