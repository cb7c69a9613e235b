// Command bench measures wsgigate beside uWSGI and gunicorn: the same apps, the
// same Python, the same number of workers, one nginx configuration.
//
//	wrk -> nginx -> FastCGI or SCGI -> wsgigate | uWSGI
//	wrk -> HTTP -> wsgigate | gunicorn | uWSGI
//
// For each application and wire all sides are started, and loaded one after the
// other, again and again (A B A B ...), so that a change of the machine's speed
// meets all of them. Everything lives in a temporary folder, on unix sockets and
// loopback. "scripts/bench" builds what it needs and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if err := o.findPrograms(); err != nil {
		return err
	}
	machine, err := describeMachine(ctx, o)
	if err != nil {
		return err
	}
	began := time.Now()
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.startNginx(ctx); err != nil {
		return err
	}
	var results []result
	for _, g := range plan(o.cases, o.wires) {
		r, err := b.measure(ctx, g)
		if err != nil {
			return err
		}
		results = append(results, r...)
	}
	return report(o, machine, results, time.Since(began))
}

// report prints everything as Markdown, and into a file if one is asked for.
func report(o *options, machine []string, results []result, took time.Duration) error {
	w := io.Writer(os.Stdout)
	if o.markdown != "" {
		f, err := os.Create(o.markdown)
		if err != nil {
			return err
		}
		defer f.Close()
		w = io.MultiWriter(os.Stdout, f)
	}
	printMachine(w, machine)
	fmt.Fprintf(w, "%d connections, %d Python workers, %d of nginx, median of %d alternations of %ds each, %s in all.\n\n",
		connections, o.workers, o.nginxWorkers, o.rounds, o.seconds, took.Round(time.Second))
	printTable(w, results)
	printNotes(w, results)
	printSummary(w, results)
	return ownFailure(results)
}
