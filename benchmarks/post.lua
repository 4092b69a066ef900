-- wrk's script: posts the bodies of a file, one a line, in turn; prints what came of it as one line of JSON.
-- wrk -t1 -cCLIENTS -dSECONDSs -s post.lua URL -- FILE

local bodies, number = {}, 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    bodies[#bodies + 1] = line
  end
end

function request()
  number = number + 1
  return wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, bodies[(number - 1) % #bodies + 1])
end

function done(summary, latency, requests)
  local errors = summary.errors
  local refused = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    'JSON {"requests": %d, "seconds": %.6f, "refused": %d, "p50": %.3f, "p99": %.3f, "longest": %.3f}',
    summary.requests, summary.duration / 1e6, refused, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3))
end
