package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dropPrivileges makes this process, all its threads, run as another user (--user)
// and group (--group), which are names or numbers; empty leaves one as it is. A
// user brings the groups of its own, whose primary one --group replaces.
//
// Every step is checked, and then what the kernel says of every thread. After
// an error the process must end: it may be half of each user.
//
// A process that is that user already is left as it is: so starts a new
// binary that an unprivileged one makes its successor.
func dropPrivileges(userName, groupName string) error {
	return thisSystem.drop(userName, groupName)
}

// setUmask sets the mask of permissions that new files do not get, here and in
// the workers.
func setUmask(mask int) { unix.Umask(mask) }

// system is what a change of user needs of the operating system.
type system struct {
	lookupUser  func(name string) (*user.User, error)
	lookupID    func(uid string) (*user.User, error)
	lookupGroup func(name string) (*user.Group, error)
	groupIDs    func(*user.User) ([]string, error)

	// These change all threads, which setuid(2) itself does not.
	setgroups func([]int) error
	setgid    func(int) error
	setuid    func(int) error

	resuid    func() (real, effective, saved int)
	resgid    func() (real, effective, saved int)
	getgroups func() ([]int, error)
	threads   func() ([]string, error) // /proc/self/task/*/status

	setenv   func(name, value string) error
	unsetenv func(name string) error
}

var thisSystem = system{
	lookupUser:  user.Lookup,
	lookupID:    user.LookupId,
	lookupGroup: user.LookupGroup,
	groupIDs:    (*user.User).GroupIds,
	setgroups:   syscall.Setgroups,
	setgid:      syscall.Setgid,
	setuid:      syscall.Setuid,
	resuid:      unix.Getresuid,
	resgid:      unix.Getresgid,
	getgroups:   syscall.Getgroups,
	threads:     threadStatuses,
	setenv:      os.Setenv,
	unsetenv:    os.Unsetenv,
}

// identity is who a process is to be.
type identity struct {
	uid, gid int   // -1: as it is
	groups   []int // sorted; nil: as they are
	home     string
	name     string // empty: the user has no entry
}

func (s *system) drop(userName, groupName string) error {
	if userName == "" && groupName == "" {
		return nil
	}
	flag := identityFlag(userName, groupName)
	want, err := s.find(userName, groupName)
	if err == nil {
		err = s.allow(want, flag)
	}
	if err != nil {
		return configError(err)
	}
	if s.is(want) {
		want.groups = nil // they were settled when it became that user
	} else if err := s.become(want); err != nil {
		return fmt.Errorf("%s: %w: nothing was started", flag, err)
	}
	if err := s.verify(want); err != nil {
		return fmt.Errorf("%s: %w: nothing was started", flag, err)
	}
	return s.moveIn(want)
}

// identityFlag is what a change of user is blamed on.
func identityFlag(userName, groupName string) string {
	if userName == "" {
		return "--group " + groupName
	}
	return "--user " + userName
}

// allow returns why this process cannot become want.
func (s *system) allow(want identity, flag string) error {
	if _, effective, _ := s.resuid(); effective != 0 && !s.is(want) {
		return fmt.Errorf("%s: only root can become another user or group, and this is user %d: start wsgigate as root or leave the flag out", flag, effective)
	}
	return nil
}

// check returns all that would keep drop from its work, and changes nothing.
func (s *system) check(userName, groupName string) (errs []error) {
	flag := identityFlag(userName, groupName)
	if _, err := s.find("", groupName); err != nil {
		errs, groupName = append(errs, err), "0" // any: the user is looked at by itself
	}
	want, err := s.find(userName, groupName)
	switch {
	case err != nil:
		errs = append(errs, err)
	case errs == nil:
		if err := s.allow(want, flag); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// checkOwner returns an error for each name of a socket's owner that the system does not
// know.
func (s *system) checkOwner(flag, userName, groupName string) (errs []error) {
	if _, isNumber := parseID(userName); userName != "" && !isNumber {
		if _, err := s.lookupUser(userName); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
	}
	if _, isNumber := parseID(groupName); groupName != "" && !isNumber {
		if _, err := s.lookupGroup(groupName); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
	}
	return errs
}

// find looks up who is meant.
func (s *system) find(userName, groupName string) (identity, error) {
	want := identity{uid: -1, gid: -1}
	if groupName != "" {
		gid, err := s.findGroup(groupName)
		if err != nil {
			return want, err
		}
		want.gid = gid
	}
	if userName == "" {
		return want, nil
	}
	uid, isNumber := parseID(userName)
	lookup := s.lookupUser
	if isNumber {
		lookup = s.lookupID
	}
	entry, err := lookup(userName)
	switch {
	case err == nil:
		err = s.addUser(&want, entry)
	case isNumber && want.gid >= 0: // a number needs no entry
		want.uid, want.groups, want.home, err = uid, []int{want.gid}, "/", nil
	case isNumber:
		err = fmt.Errorf("--user %s: the system has no entry for that number, so its group is unknown: add --group", userName)
	default:
		err = fmt.Errorf("--user %s: %w: name a user of /etc/passwd, or write numbers for --user and --group", userName, err)
	}
	if err == nil && want.uid == 0 {
		err = fmt.Errorf("--user %s: that is root, whose privileges the flag is there to drop: name another or leave the flag out", userName)
	}
	return want, err
}

func (s *system) findGroup(name string) (int, error) {
	if gid, isNumber := parseID(name); isNumber {
		return gid, nil
	}
	entry, err := s.lookupGroup(name)
	if err != nil {
		return -1, fmt.Errorf("--group %s: %w: name a group of /etc/group, or write its number", name, err)
	}
	return strconv.Atoi(entry.Gid)
}

// addUser takes over what the system knows of a user: as initgroups(3), its
// groups and the primary one, in whose place --group may be.
func (s *system) addUser(want *identity, entry *user.User) error {
	all, err := s.groupIDs(entry)
	if err != nil {
		return fmt.Errorf("--user %s: its groups: %w", entry.Username, err)
	}
	ids := map[int]bool{}
	for _, text := range append(all, entry.Gid) {
		gid, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--user %s: its groups: %w", entry.Username, err)
		}
		ids[gid] = true
	}
	primary, _ := strconv.Atoi(entry.Gid)
	if want.gid < 0 {
		want.gid = primary
	} else {
		delete(ids, primary)
		ids[want.gid] = true
	}
	want.groups = slices.Sorted(maps.Keys(ids))
	want.name, want.home = entry.Username, cmp.Or(entry.HomeDir, "/")
	want.uid, err = strconv.Atoi(entry.Uid)
	return err
}

// parseID reads the number of a user or group. The largest means "as it is" to
// the kernel and is nobody's.
func parseID(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return int(n), err == nil && n != 1<<32-1
}

// is reports whether the process runs as want already.
func (s *system) is(want identity) bool {
	same := func(id int, now func() (int, int, int)) bool {
		r, e, saved := now()
		return id < 0 || r == id && e == id && saved == id
	}
	return same(want.uid, s.resuid) && same(want.gid, s.resgid)
}

// become changes the groups first: once the user is changed it may not.
func (s *system) become(want identity) error {
	if want.groups != nil {
		if err := s.setgroups(want.groups); err != nil {
			return os.NewSyscallError("setgroups", err)
		}
	}
	if want.gid >= 0 {
		if err := s.setgid(want.gid); err != nil {
			return os.NewSyscallError("setgid", err)
		}
	}
	if want.uid >= 0 {
		if err := s.setuid(want.uid); err != nil {
			return os.NewSyscallError("setuid", err)
		}
	}
	return nil
}

// verify asks the kernel who this process is now: setuid(2) has said yes before
// and left the way back open (CVE-2000-0506).
func (s *system) verify(want identity) error {
	if !s.is(want) {
		return errors.New("the system changed the user or group of this process, but not all of it")
	}
	if want.groups != nil {
		groups, err := s.getgroups()
		if err != nil {
			return os.NewSyscallError("getgroups", err)
		}
		if slices.Sort(groups); !slices.Equal(slices.Compact(groups), want.groups) {
			return fmt.Errorf("the groups of this process are %v, not %v", groups, want.groups)
		}
	}
	if want.uid >= 0 && s.setuid(0) == nil {
		return errors.New("this process can become root again")
	}
	statuses, err := s.threads()
	if err != nil {
		return fmt.Errorf("the threads of this process cannot be looked at: %w", err)
	}
	if len(statuses) == 0 {
		return errors.New("the threads of this process cannot be looked at: /proc shows none")
	}
	for _, status := range statuses {
		if err := want.checkThread(status); err != nil {
			return err
		}
	}
	return nil
}

// threadStatuses returns /proc/self/task/*/status.
func threadStatuses() ([]string, error) {
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return nil, err
	}
	var all []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		switch {
		case err == nil:
			all = append(all, string(text))
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH): // it ended
			return nil, err
		}
	}
	return all, nil
}

// checkThread compares what the kernel says of a thread (proc_pid_status(5)): real,
// effective, saved and filesystem ids, groups and capabilities. Those that
// only bound what a program may gain (CapBnd, CapInh) may be anything.
func (want identity) checkThread(status string) error {
	fields := map[string]string{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	expect := map[string]string{}
	if want.gid >= 0 {
		expect["Gid"] = strings.TrimSpace(strings.Repeat(strconv.Itoa(want.gid)+" ", 4))
	}
	if want.uid >= 0 {
		expect["Uid"] = strings.TrimSpace(strings.Repeat(strconv.Itoa(want.uid)+" ", 4))
		expect["CapEff"], expect["CapPrm"], expect["CapAmb"] = noCapability, noCapability, noCapability
	}
	if want.groups != nil {
		expect["Groups"] = strings.Trim(fmt.Sprint(want.groups), "[]")
	}
	for _, name := range slices.Sorted(maps.Keys(expect)) {
		if got, ok := fields[name]; got != expect[name] {
			if !ok {
				got = "unknown"
			}
			return fmt.Errorf("thread %s has %s %s, not %s", fields["Pid"], name, got, expect[name])
		}
	}
	return nil
}

const noCapability = "0000000000000000"

// moveIn gives the environment, of which the workers inherit a part, the new
// user's home and name.
func (s *system) moveIn(want identity) error {
	if want.uid < 0 {
		return nil
	}
	errs := []error{s.setenv("HOME", want.home)}
	for _, name := range []string{"USER", "LOGNAME"} {
		if want.name == "" {
			errs = append(errs, s.unsetenv(name))
		} else {
			errs = append(errs, s.setenv(name, want.name))
		}
	}
	return errors.Join(errs...)
}
