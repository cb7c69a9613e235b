package main

import (
	"errors"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// fakeSystem is an operating system that a test can have fail. It begins as
// root with root's group.
type fakeSystem struct {
	uid, gid [3]int // real, effective, saved
	groups   []int
	caps     string
	env      map[string]string
	calls    []string
	fail     string // the call that fails
	lie      func(*fakeSystem)
}

func newFakeSystem() *fakeSystem {
	return &fakeSystem{groups: []int{0}, caps: "000001ffffffffff", env: map[string]string{"HOME": "/root", "USER": "root", "LOGNAME": "root"}}
}

func (f *fakeSystem) did(call string) error {
	f.calls = append(f.calls, call)
	if name, _, _ := strings.Cut(call, " "); name == f.fail {
		return unix.EPERM
	}
	return nil
}

func (f *fakeSystem) system() *system {
	entries := map[string]*user.User{
		"www":  {Username: "www", Uid: "33", Gid: "33", HomeDir: "/var/www"},
		"root": {Username: "root", Uid: "0", Gid: "0", HomeDir: "/root"},
		"bare": {Username: "bare", Uid: "50", Gid: "50"},
	}
	numbers := map[string]*user.User{}
	for _, entry := range entries {
		numbers[entry.Uid] = entry
	}
	find := func(in map[string]*user.User) func(string) (*user.User, error) {
		return func(name string) (*user.User, error) {
			if entry := in[name]; entry != nil {
				return entry, nil
			}
			return nil, user.UnknownUserError(name)
		}
	}
	return &system{
		lookupUser: find(entries), lookupID: find(numbers),
		lookupGroup: func(name string) (*user.Group, error) {
			if name == "adm" {
				return &user.Group{Gid: "4", Name: "adm"}, nil
			}
			return nil, user.UnknownGroupError(name)
		},
		groupIDs: func(u *user.User) ([]string, error) { return []string{u.Gid, "1000", "70"}, f.did("groupIDs") },
		setgroups: func(groups []int) error {
			err := f.did("setgroups " + fmt.Sprint(groups))
			if err == nil {
				f.groups = slices.Clone(groups)
			}
			return err
		},
		setgid: func(gid int) error {
			err := f.did("setgid " + strconv.Itoa(gid))
			if err == nil {
				f.gid = [3]int{gid, gid, gid}
			}
			return err
		},
		setuid:    f.setuid,
		resuid:    func() (int, int, int) { return f.uid[0], f.uid[1], f.uid[2] },
		resgid:    func() (int, int, int) { return f.gid[0], f.gid[1], f.gid[2] },
		getgroups: func() ([]int, error) { return slices.Clone(f.groups), f.did("getgroups") },
		threads:   func() ([]string, error) { return []string{f.status(1), f.status(2)}, f.did("threads") },
		setenv:    func(name, value string) error { f.env[name] = value; return f.did("setenv") },
		unsetenv:  func(name string) error { delete(f.env, name); return f.did("unsetenv") },
	}
}

func (f *fakeSystem) setuid(uid int) error {
	err := f.did("setuid " + strconv.Itoa(uid))
	if err != nil {
		return err
	}
	if uid == 0 && f.uid != [3]int{} {
		if f.uid[2] != 0 {
			return unix.EPERM
		}
		f.uid[1] = 0
		return nil
	}
	f.uid, f.caps = [3]int{uid, uid, uid}, noCapability
	if f.lie != nil {
		f.lie(f)
	}
	return nil
}

// status is what /proc shows of a thread.
func (f *fakeSystem) status(thread int) string {
	four := func(id [3]int) string { return fmt.Sprintf("%d\t%d\t%d\t%d", id[0], id[1], id[2], id[1]) }
	return fmt.Sprintf("Name:\twsgigate\nTgid:\t1\nPid:\t%d\nUid:\t%s\nGid:\t%s\nGroups:\t%s \nCapInh:\t0000000000000400\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t000001ffffffffff\nCapAmb:\t%s\n",
		thread, four(f.uid), four(f.gid), strings.Trim(fmt.Sprint(f.groups), "[]"), f.caps, f.caps, noCapability)
}

// TestDropPrivileges: who one is then, and by which steps (FAULTS.md, S8).
func TestDropPrivileges(t *testing.T) {
	for name, c := range map[string]struct {
		user, group string
		calls       []string // that change something
		env         map[string]string
	}{
		"neither": {},
		"user": {user: "www", calls: []string{"setgroups [33 70 1000]", "setgid 33", "setuid 33", "setuid 0"},
			env: map[string]string{"HOME": "/var/www", "USER": "www", "LOGNAME": "www"}},
		"number with an entry": {user: "33", calls: []string{"setgroups [33 70 1000]", "setgid 33", "setuid 33", "setuid 0"},
			env: map[string]string{"HOME": "/var/www", "USER": "www", "LOGNAME": "www"}},
		"both": {user: "www", group: "adm", calls: []string{"setgroups [4 70 1000]", "setgid 4", "setuid 33", "setuid 0"},
			env: map[string]string{"HOME": "/var/www", "USER": "www", "LOGNAME": "www"}},
		"numbers without entries": {user: "777", group: "888", calls: []string{"setgroups [888]", "setgid 888", "setuid 777", "setuid 0"},
			env: map[string]string{"HOME": "/"}},
		"no home":     {user: "bare", calls: []string{"setgroups [50 70 1000]", "setgid 50", "setuid 50", "setuid 0"}, env: map[string]string{"HOME": "/", "USER": "bare", "LOGNAME": "bare"}},
		"group alone": {group: "adm", calls: []string{"setgid 4"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSystem()
			want := c.env
			if want == nil {
				want = maps.Clone(f.env)
			}
			if err := f.system().drop(c.user, c.group); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.calls, f.changes()); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, f.env); diff != "" {
				t.Errorf("environment (-want +got):\n%s", diff)
			}
		})
	}
}

// changes are the calls that change who a process is.
func (f *fakeSystem) changes() (changes []string) {
	for _, call := range f.calls {
		if strings.HasPrefix(call, "setgroups ") || strings.HasPrefix(call, "setgid ") || strings.HasPrefix(call, "setuid ") {
			changes = append(changes, call)
		}
	}
	return changes
}

// TestDropAgain: an unprivileged gateway starts its successor, which reads the
// same flags.
func TestDropAgain(t *testing.T) {
	f := newFakeSystem()
	if err := f.system().drop("www", "adm"); err != nil {
		t.Fatal(err)
	}
	f.calls = nil
	if err := f.system().drop("www", "adm"); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if diff := cmp.Diff([]string{"setuid 0"}, f.changes()); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	f.caps = "0000000000000400"
	if err := f.system().drop("www", "adm"); err == nil || !strings.Contains(err.Error(), "0000000000000400") {
		t.Errorf("with a capability: %v", err)
	}
}

// TestDropFails: each step that fails, and each that succeeds without effect, is
// an error.
func TestDropFails(t *testing.T) {
	const failed, badConfig = exitFailed, exitConfig
	steps := map[string]struct {
		user, group string
		prepare     func(*fakeSystem)
		says        string
		status      int
	}{
		"setgroups":            {says: "setgroups: operation not permitted", prepare: failsAt("setgroups")},
		"setgid":               {says: "setgid: operation not permitted", prepare: failsAt("setgid")},
		"setuid":               {says: "setuid: operation not permitted", prepare: failsAt("setuid")},
		"getgroups":            {says: "getgroups: operation not permitted", prepare: failsAt("getgroups")},
		"threads":              {says: "threads of this process cannot be looked at", prepare: failsAt("threads")},
		"environment":          {says: "operation not permitted", prepare: failsAt("setenv")},
		"real id stays":        {says: "not all of it", prepare: liesAbout(func(f *fakeSystem) { f.uid[0] = 0 })},
		"effective id stays":   {says: "not all of it", prepare: liesAbout(func(f *fakeSystem) { f.uid[1] = 0 })},
		"saved id stays":       {says: "not all of it", prepare: liesAbout(func(f *fakeSystem) { f.uid[2] = 0 })},
		"real group stays":     {says: "not all of it", prepare: liesAbout(func(f *fakeSystem) { f.gid[0] = 0 })},
		"saved group stays":    {says: "not all of it", prepare: liesAbout(func(f *fakeSystem) { f.gid[2] = 0 })},
		"groups stay":          {says: "the groups of this process are [0 33]", prepare: liesAbout(func(f *fakeSystem) { f.groups = []int{33, 0} })},
		"capabilities stay":    {says: "thread 1 has CapEff 0000000000000001", prepare: liesAbout(func(f *fakeSystem) { f.caps = "0000000000000001" })},
		"group of group alone": {user: "-", group: "adm", says: "--group adm: setgid: operation not permitted", prepare: failsAt("setgid")},
		"groups unknown":       {says: "its groups: operation not permitted", prepare: failsAt("groupIDs"), status: badConfig},
		"not root":             {says: "--user www: only root can become another user or group, and this is user 5", prepare: func(f *fakeSystem) { f.uid = [3]int{5, 5, 5} }, status: badConfig},
		"no such user":         {user: "nope", says: "--user nope: user: unknown user nope", status: badConfig},
		"no such group":        {group: "nope", says: "--group nope: group: unknown group nope", status: badConfig},
		"number without group": {user: "777", says: "add --group", status: badConfig},
		"root":                 {user: "root", says: "that is root", status: badConfig},
		"0":                    {user: "0", says: "that is root", status: badConfig},
		"the number for none":  {user: "4294967295", group: "adm", says: "unknown user", status: badConfig},
		"negative":             {user: "-1", group: "adm", says: "unknown user", status: badConfig},
	}
	for name, c := range steps {
		t.Run(name, func(t *testing.T) {
			f := newFakeSystem()
			if c.prepare != nil {
				c.prepare(f)
			}
			switch c.user {
			case "":
				c.user = "www"
			case "-":
				c.user = ""
			}
			err := f.system().drop(c.user, c.group)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v, want %q", err, c.says)
			}
			if c.status == 0 {
				c.status = failed
			}
			status := failed
			if coder, ok := errors.AsType[cli.ExitCoder](err); ok {
				status = coder.ExitCode()
			}
			if status != c.status {
				t.Errorf("exit status %d, want %d", status, c.status)
			}
		})
	}
}

func failsAt(call string) func(*fakeSystem) { return func(f *fakeSystem) { f.fail = call } }

func liesAbout(lie func(*fakeSystem)) func(*fakeSystem) { return func(f *fakeSystem) { f.lie = lie } }

// TestRootRegained: a way back to root is an error.
func TestRootRegained(t *testing.T) {
	s := newFakeSystem().system()
	real := s.setuid
	s.setuid = func(uid int) error {
		if uid == 0 {
			return nil
		}
		return real(uid)
	}
	if err := s.drop("www", ""); err == nil || !strings.Contains(err.Error(), "can become root again") {
		t.Errorf("error %v", err)
	}
}

// TestEveryThread: one thread that was left behind is an error.
func TestEveryThread(t *testing.T) {
	f := newFakeSystem()
	s := f.system()
	for field, left := range map[string]string{
		"Uid": "33 33 33 0", "Gid": "33 33 0 33", "Groups": "0", "CapPrm": "0000000000000080", "CapAmb": "0000000000000080",
	} {
		s.threads = func() ([]string, error) {
			var other strings.Builder
			for line := range strings.Lines(f.status(2)) {
				if strings.HasPrefix(line, field+":") {
					line = field + ":\t" + left + "\n"
				}
				other.WriteString(line)
			}
			return []string{f.status(1), other.String()}, nil
		}
		f.uid, f.gid, f.groups = [3]int{}, [3]int{}, []int{0}
		if err := s.drop("www", ""); err == nil || !strings.Contains(err.Error(), "thread 2 has "+field+" "+left) {
			t.Errorf("%s: %v", field, err)
		}
	}
	s.threads = func() ([]string, error) { return nil, nil }
	if err := s.drop("www", ""); err == nil || !strings.Contains(err.Error(), "shows none") {
		t.Errorf("without /proc: %v", err)
	}
}

// TestThreadStatuses: /proc is read as it is.
func TestThreadStatuses(t *testing.T) {
	statuses, err := threadStatuses()
	if err != nil || len(statuses) == 0 {
		t.Fatalf("%d threads, %v", len(statuses), err)
	}
	own := identity{uid: -1, gid: unix.Getgid()}
	for _, status := range statuses {
		if err := own.checkThread(status); err != nil {
			t.Error(err)
		}
	}
}

func TestSetUmask(t *testing.T) {
	old := unix.Umask(0o22)
	defer unix.Umask(old)
	setUmask(0o27)
	if now := unix.Umask(0o22); now != 0o27 {
		t.Errorf("umask %o", now)
	}
}
