package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	blocksSize = 1 << 20
	fileSize   = 10 << 20
	echoSize   = 2 << 10 // bytes of the JSON body, about
)

// benchCase is one request and the answer that it must have.
type benchCase struct {
	name    string
	says    string // for the report
	method  string
	headers []string // "Name: value"
	body    []byte
	want    []byte // the response's body
}

// path is the request's; bench_app.py has an application for each.
func (c benchCase) path() string { return "/" + c.name }

// benchCases are what is measured, in the order of the report.
var benchCases = []benchCase{
	{
		name: "hello", says: "a list of one block, 5 headers",
		method: "GET", headers: []string{"Accept: */*", "User-Agent: wrk", "Accept-Encoding: gzip"},
		want: []byte("Hello, world!\n"),
	},
	{
		name: "echo", says: "20 request headers, 2 KiB of JSON parsed and sent back",
		method: "POST", headers: browserHeaders(), body: jsonBody(), want: jsonBody(),
	},
	{
		name: "blocks", says: "1 MiB from a generator as 64 KiB blocks, no Content-Length",
		method: "GET", headers: []string{"Accept: */*"},
		want: bytes.Repeat([]byte("x"), blocksSize),
	},
	{
		name: "file", says: "10 MiB through wsgi.file_wrapper",
		method: "GET", headers: []string{"Accept: */*"},
		want: fileContent(),
	},
}

func caseNamed(name string) (benchCase, bool) {
	for _, c := range benchCases {
		if c.name == name {
			return c, true
		}
	}
	return benchCase{}, false
}

func caseNames() []string {
	var names []string
	for _, c := range benchCases {
		names = append(names, c.name)
	}
	return names
}

// browserHeaders are what a browser's request for an API has; with Host and
// Content-Length, which wrk adds, they are 20.
func browserHeaders() []string {
	return []string{
		"Accept: application/json, text/plain, */*",
		"Accept-Encoding: gzip, deflate, br",
		"Accept-Language: en-GB,en;q=0.9,de;q=0.8",
		"Authorization: Bearer " + strings.Repeat("0123456789abcdef", 8),
		"Cache-Control: no-cache",
		"Content-Type: application/json",
		"Cookie: sessionid=" + strings.Repeat("k3j2", 8) + "; csrftoken=" + strings.Repeat("z9x8", 16),
		"DNT: 1",
		"Origin: https://www.example.com",
		"Pragma: no-cache",
		"Referer: https://www.example.com/app/orders/2024?page=3",
		"Sec-Fetch-Dest: empty",
		"Sec-Fetch-Mode: cors",
		"Sec-Fetch-Site: same-origin",
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
		"X-CSRFToken: " + strings.Repeat("z9x8", 16),
		"X-Request-Id: 7d2f1c9e-0b7a-4f0e-9c57-6a8d2f0a1b34",
		"X-Requested-With: XMLHttpRequest",
	}
}

// jsonBody is a list of records in the form that json.dumps with the shortest
// separators gives, so that the answer can be compared byte by byte.
func jsonBody() []byte {
	var b bytes.Buffer
	b.WriteString("[")
	for i := 0; b.Len() < echoSize-100; i++ {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"id":%d,"name":"item %d","price":%d.25,"tags":["new","sale"],"stock":true,"note":null}`,
			i, i, 10+i)
	}
	b.WriteString("]")
	return b.Bytes()
}

// fileContent is the file: a counter, so that a misplaced piece shows.
func fileContent() []byte {
	b := make([]byte, fileSize)
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], uint64(i))
	}
	return b
}
