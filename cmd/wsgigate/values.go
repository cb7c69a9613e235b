package main

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

func addrs(field func(*config) *[]wire.Addr) func(*config, string) error {
	return func(c *config, value string) error {
		addr, err := wire.ParseAddr(value)
		if err == nil {
			*field(c) = append(*field(c), addr)
		}
		return err
	}
}

// addr reads the address of a listener that there is at most one of.
func addr(field func(*config) **wire.Addr) func(*config, string) error {
	return func(c *config, value string) error {
		addr, err := wire.ParseAddr(value)
		if err == nil {
			*field(c) = &addr
		}
		return err
	}
}

func applyAllow(c *config, value string) error {
	if prefix, err := netip.ParsePrefix(value); err == nil {
		c.allow = append(c.allow, prefix.Masked())
		return nil
	}
	ip, err := netip.ParseAddr(value)
	if err != nil {
		return fmt.Errorf("%q is not an address or a network: write for example 10.0.0.0/8", value)
	}
	c.allow = append(c.allow, netip.PrefixFrom(ip, ip.BitLen()))
	return nil
}

func counts(field func(*config) *int, least int) func(*config, string) error {
	return func(c *config, value string) error {
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil || int(n) < least {
			return fmt.Errorf("%q is not a whole number of at least %d", value, least)
		}
		*field(c) = int(n)
		return nil
	}
}

// applyWorkers reads N or MIN:MAX.
func applyWorkers(c *config, value string) error {
	least, most, ranged := strings.Cut(value, ":")
	if !ranged {
		least, most = "0", value
	}
	lo, loErr := strconv.ParseUint(least, 10, 31)
	hi, hiErr := strconv.ParseUint(most, 10, 31)
	if loErr != nil || hiErr != nil || hi < max(lo, 1) {
		return fmt.Errorf("%q is not a whole number of at least 1, nor MIN:MAX: write for example 4, 2:8 or 0:4", value)
	}
	c.workers, c.minWorkers = int(hi), int(lo)
	if ranged && lo == 0 {
		c.minWorkers = -1 // on demand
	}
	return nil
}

func text(field func(*config) *string) func(*config, string) error {
	return func(c *config, value string) error {
		*field(c) = value
		return nil
	}
}

func texts(field func(*config) *[]string) func(*config, string) error {
	return func(c *config, value string) error {
		*field(c) = append(*field(c), value)
		return nil
	}
}

func flags(field func(*config) *bool) func(*config, string) error {
	return func(c *config, value string) (err error) {
		if *field(c), err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
		return nil
	}
}

// ownEnv are variables that no deployment can give: those of one request, and
// those between the service manager and this process.
var ownEnv = []string{"wsgi.", "REQUEST_METHOD", "CONTENT_LENGTH", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"}

func applyEnv(c *config, value string) error {
	name, _, _ := strings.Cut(value, "=")
	if name == "" {
		return fmt.Errorf("%q has no name: write NAME=value", value)
	}
	for _, own := range ownEnv {
		if name == own || strings.HasPrefix(name, own) && strings.ContainsAny(own[len(own)-1:], "._") {
			return fmt.Errorf("%s is not for a deployment to set: leave it out", name)
		}
	}
	c.env = append(c.env, value)
	return nil
}

func applyLogFormat(c *config, value string) (err error) {
	if c.logFormat, err = environ.ParseFormat(value); err != nil {
		return fmt.Errorf("%q is not text, json or combined", value)
	}
	return nil
}

func applyReloadMode(c *config, value string) error {
	if value != "parallel" && value != "rolling" {
		return fmt.Errorf("%q is neither parallel nor rolling", value)
	}
	c.rolling = value == "rolling"
	return nil
}

func applyUmask(c *config, value string) error {
	mask, err := strconv.ParseUint(value, 8, 32)
	if err != nil || mask > 0o777 {
		return fmt.Errorf("%q is not a mask of permissions: write an octal number such as 027", value)
	}
	c.umask = int(mask)
	return nil
}

// durations reads "90s", "1m30s", or a bare number of seconds.
func durations(field func(*config) *time.Duration, zero bool) func(*config, string) error {
	return func(c *config, value string) error {
		d, err := time.ParseDuration(value)
		if n, numErr := strconv.ParseFloat(value, 64); numErr == nil && math.Abs(n) < math.MaxInt64/1e9 {
			d, err = time.Duration(n*float64(time.Second)), nil
		}
		switch {
		case err != nil:
			return fmt.Errorf("%q is not a length of time: write for example 90s or 5m", value)
		case d < 0 && zero:
			return fmt.Errorf("%q must be 0 or more: write for example 90s or 5m", value)
		case d <= 0 && !zero:
			return fmt.Errorf("%q must be more than 0: write for example 90s or 5m", value)
		}
		*field(c) = d
		return nil
	}
}

// sizeUnits are powers of 1024, however they are written.
var sizeUnits = map[string]int64{"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30}

func sizes(field func(*config) *int64) func(*config, string) error {
	return func(c *config, value string) error {
		digits := strings.TrimRight(value, "BGIKMbgikm")
		unit, known := sizeUnits[strings.ToLower(value[len(digits):])]
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || !known || n <= 0 || n > (1<<62)/unit {
			return fmt.Errorf("%q is not a size: write for example 64KiB, 200M or 1GiB", value)
		}
		*field(c) = n * unit
		return nil
	}
}
