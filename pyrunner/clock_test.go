package pyrunner

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// wallClock has the functions of package time that give the wall clock, or a
// time without a monotonic reading (see its "Monotonic Clocks").
var wallClock = map[string]bool{
	"Unix": true, "UnixMilli": true, "UnixMicro": true, "UnixNano": true, "UTC": true, "Local": true, "In": true,
	"AddDate": true, "Date": true, "Format": true, "Hour": true, "GobEncode": true,
}

// forcedPast is the one use: a deadline that is over whatever the clock says.
const forcedPast = "time.Unix(1, 0)"

// TestMonotonicTimeOnly: row 54. A jump of the wall clock ends no request and no
// wait, because the package measures by differences of time.Now alone, which are
// monotonic as long as nothing strips that reading.
func TestMonotonicTimeOnly(t *testing.T) {
	t.Parallel()
	files := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		looked++
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if ok && wallClock[method.Sel.Name] && !isForcedPast(method, call) {
				t.Errorf("%v: %s reads the wall clock", files.Position(call.Pos()), method.Sel.Name)
			}
			return true
		})
	}
	if looked < 10 {
		t.Errorf("only %d files were looked at", looked)
	}
}

// pythonWallClock matches what gives the wall clock in Python.
var pythonWallClock = regexp.MustCompile(`\btime\.(time|time_ns|localtime|gmtime|ctime|strftime)\b|\bdatetime\b|from time import [^\n]*\b(time|time_ns|localtime|gmtime|ctime|strftime)\b`)

// TestMonotonicTimeOnlyInPython: row 54, the other half.
func TestMonotonicTimeOnlyInPython(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("python/*.py")
	if err != nil || len(names) < 10 {
		t.Fatalf("the runner's files are %v, %v", names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if found := pythonWallClock.Find(text); found != nil {
			t.Errorf("%s: %s reads the wall clock", name, found)
		}
	}
}

// isForcedPast recognises forcedPast.
func isForcedPast(method *ast.SelectorExpr, call *ast.CallExpr) bool {
	if len(call.Args) != 2 {
		return false
	}
	pkg, ok := method.X.(*ast.Ident)
	first, isFirst := call.Args[0].(*ast.BasicLit)
	second, isSecond := call.Args[1].(*ast.BasicLit)
	return ok && isFirst && isSecond && pkg.Name+"."+method.Sel.Name+"("+first.Value+", "+second.Value+")" == forcedPast
}
