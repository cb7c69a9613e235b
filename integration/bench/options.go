package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	connections = 32 // of wrk, and nginx's idle ones to a backend that keeps them
	wrkThreads  = 1
)

// options are the command line's.
type options struct {
	wsgigate, python    string // paths
	cases               []benchCase
	wires               []string
	rounds, seconds     int
	workers             int
	nginxWorkers        int
	markdown, profileTo string
}

// parseOptions reads the command line.
func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.wsgigate, "wsgigate", "wsgigate", "`PATH` of the binary to measure")
	f.StringVar(&o.python, "python", "/usr/bin/python3", "`PATH` of the interpreter for wsgigate and gunicorn; uWSGI has Debian's built in")
	names := f.String("cases", "hello,echo,blocks,file", "applications to measure")
	wires := f.String("wires", strings.Join(allWires, ","), "wires to measure")
	f.IntVar(&o.rounds, "rounds", 5, "alternations")
	f.IntVar(&o.seconds, "seconds", 2, "length of one run of one side")
	f.IntVar(&o.workers, "workers", 2, "Python processes of each side")
	f.IntVar(&o.nginxWorkers, "nginx-workers", 2, "processes of nginx; one is too few for 10 MiB bodies, see nginx us/req")
	f.StringVar(&o.markdown, "markdown", "", "write the report to `FILE` too")
	f.StringVar(&o.profileTo, "profile", "", "one more run of each side under perf, into `FOLDER`")
	f.BoolFunc("quick", "2 alternations of 1 s: does it work?", func(string) error {
		o.rounds, o.seconds = 2, 1 // options after it count
		return nil
	})
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	return o, o.check(f, *names, *wires)
}

// check fills in the lists and refuses what cannot be measured.
func (o *options) check(f *flag.FlagSet, names, wires string) error {
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if min(o.rounds, o.seconds, o.workers, o.nginxWorkers) < 1 {
		return fmt.Errorf("--rounds, --seconds, --workers and --nginx-workers must be at least 1")
	}
	for name := range strings.SplitSeq(names, ",") {
		c, ok := caseNamed(name)
		if !ok {
			return fmt.Errorf("--cases: no case %q; there are %s", name, strings.Join(caseNames(), ", "))
		}
		o.cases = append(o.cases, c)
	}
	o.wires = strings.Split(wires, ",")
	for _, w := range o.wires {
		if !slices.Contains(allWires, w) {
			return fmt.Errorf("--wires: no wire %q; there are %s", w, strings.Join(allWires, ", "))
		}
	}
	if o.profileTo != "" {
		return os.MkdirAll(o.profileTo, 0o755)
	}
	return nil
}

// findPrograms makes their paths absolute: the sides run in a folder of the
// benchmark's.
func (o *options) findPrograms() error {
	for _, program := range []*string{&o.wsgigate, &o.python} {
		path, err := exec.LookPath(*program)
		if err != nil {
			return err
		}
		if *program, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	return nil
}
