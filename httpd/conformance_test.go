package httpd

import (
	"testing"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

func TestConformance(t *testing.T) {
	for _, mount := range []string{"", "/sub"} {
		s := &Server{Handler: environtest.App()}
		if mount != "" {
			s.Rules = environ.Rules{Extra: [][2]string{{"SCRIPT_NAME", mount}}}
		}
		target := environtest.Target{
			Do:     environtest.HTTP("tcp", start(t, s)),
			Mount:  mount,
			Quirks: environtest.UnderscoreDropped | environtest.NoCustomReason,
		}
		t.Run("mount "+mount, func(t *testing.T) { environtest.Run(t, target) })
	}
}
