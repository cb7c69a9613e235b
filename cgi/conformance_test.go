package cgi

import (
	"bytes"
	"context"
	"testing"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

func TestConformance(t *testing.T) {
	for _, mount := range []string{"", "/sub"} {
		target := environtest.Target{Mount: mount, RunOnce: true, Do: func(r *environtest.Request) (*environtest.Response, error) {
			var env []string
			for _, kv := range environtest.FrontEnviron(r, mount) {
				env = append(env, kv[0]+"="+kv[1])
			}
			var out, errs bytes.Buffer
			if err := Serve(context.Background(), environtest.App(), environ.Rules{}, env, bytes.NewReader(r.Body), &out, &errs); err != nil {
				return nil, err
			}
			return environtest.ParseCGI(out.Bytes())
		}}
		t.Run("mount "+mount, func(t *testing.T) { environtest.Run(t, target) })
	}
}
