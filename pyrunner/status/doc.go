// Package status shows what a pool of workers is and does: to people as a page
// and as text, to programs as JSON, to Prometheus, and to load balancers.
//
//	pyrunner.Pool -> Status -> Snapshot -> page, text, JSON, metrics, ping, ready
//
// [Handler] answers GET and HEAD of
//
//	/             the page; it refreshes itself and loads nothing from elsewhere
//	/fragment     the part of the page that changes
//	/status.json  a Snapshot
//	/metrics      the metrics below, in the Prometheus text format or in OpenMetrics
//	/ping         200 if a worker exists or none is needed, else 503
//	/ready        200 if a worker could take a request now, else 503 and the reason
//
// Whoever can connect sees the URLs of running requests with their queries, the
// addresses of clients, and tracebacks and last log lines of workers. There is no
// password. [OnlyFor] keeps a web page that a user of this machine visits from reading
// all this over TCP by DNS rebinding.
//
// # Metrics
//
// Gauges, unless their name ends in _total (counters) or says otherwise:
//
//	wsgigate_info{app,version}                     1
//	wsgigate_state{state}                          1 for the state that the pool is in, else 0
//	wsgigate_start_time_seconds                    when the pool was started, Unix time
//	wsgigate_generation                            1, and one more for each reload that succeeded
//	wsgigate_workers{state}                        worker processes: starting, standby, ready, draining, doomed
//	wsgigate_workers_busy                          workers with a request
//	wsgigate_workers_min, wsgigate_workers_max     bounds of the number of workers
//	wsgigate_worker_threads                        requests that one worker takes at once
//	wsgigate_worker_cpu_seconds_total{pid}         user and system time of a worker
//	wsgigate_worker_resident_memory_bytes{pid}     memory of a worker
//	wsgigate_requests_running                      requests that workers have
//	wsgigate_requests_waiting                      requests in the queue
//	wsgigate_requests_waiting_limit                requests that may be in the queue
//	wsgigate_request_longest_seconds               how long the oldest running request has been running
//	wsgigate_requests_received_total               requests that came in
//	wsgigate_requests_total{result}                requests that ended: answered, failed, refused, cancelled
//	wsgigate_requests_retried_total                requests taken back unread from a worker that ended
//	wsgigate_requests_slow_total                   requests that took longer than --slow
//	wsgigate_requests_timed_out_total              requests that took longer than --timeout
//	wsgigate_responses_total{code}                 responses by status code
//	wsgigate_request_duration_seconds              histogram: from a request's arrival to the end of its answer
//	wsgigate_workers_started_total                 workers that were started
//	wsgigate_workers_crashed_total                 workers that ended without being asked to
//	wsgigate_workers_out_of_memory_total           of those, by the kernel's out-of-memory killer
//	wsgigate_workers_recycled_total                workers replaced for their requests, age or memory
//	wsgigate_reloads_total                         reloads that succeeded
//	wsgigate_reload_failures_total                 reloads that kept the old workers
//	wsgigate_reload_running                        1 while a reload runs
//	wsgigate_reload_last_success                   1 if the last reload succeeded (absent before the first)
//	wsgigate_reload_last_timestamp_seconds         when it began, Unix time
//	wsgigate_reload_last_duration_seconds          how long it took
//	wsgigate_crash_loop                            1 while workers do not start or end at once
//	wsgigate_crash_loop_failures                   how many did so in a row
//
// The two that have a pid are of the workers that exist; sum them, for example
// sum(rate(wsgigate_worker_cpu_seconds_total[5m])). The metrics go_* and process_*
// are those of the gateway's own process.
//
// Sources: the Prometheus text format 0.0.4, OpenMetrics 1.0, Content Security
// Policy Level 3.
package status
