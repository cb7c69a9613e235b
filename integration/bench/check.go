package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	startTime = 20 * time.Second      // for a server to answer its first request
	pollEvery = 20 * time.Millisecond // between two looks
	checkTime = 10 * time.Second      // for one checked request
)

// client keeps no connection: an idle one would occupy a gunicorn worker.
var client = &http.Client{Timeout: checkTime, Transport: &http.Transport{
	DisableKeepAlives: true, DisableCompression: true,
}}

// poll calls try until it returns nil, the process ends or startTime is over.
func poll(ctx context.Context, p *process, try func() error) error {
	deadline := time.Now().Add(startTime)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if ended := p.ended(); ended != nil {
			return ended
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %v: %w\n%s", startTime, err, p.tail())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// check makes one request of a case and compares the answer byte by byte.
func check(ctx context.Context, address string, c benchCase) error {
	body, err := fetch(ctx, c.method, address, c.headers, c.body)
	if err != nil {
		return err
	}
	if !bytes.Equal(body, c.want) {
		return fmt.Errorf("wrong body: %d bytes, should be %d", len(body), len(c.want))
	}
	return nil
}

// interpreter asks a side which Python it runs.
func interpreter(ctx context.Context, address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	u.Path = "/python"
	body, err := fetch(ctx, "GET", u.String(), nil, nil)
	return string(body), err
}

// fetch makes one request and returns the body of a 200.
func fetch(ctx context.Context, method, address string, headers []string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s after %d bytes: %w", resp.Status, len(answer), err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", resp.Status)
	}
	return answer, nil
}
