// chart renders a chart's templates as `helm template` does, with as much of Helm as charts of this repository use: what they
// use beyond that is an error. Where there is a real helm, it is the better judge.
//
//	chart CHART RELEASE NAMESPACE [KEY=VALUE…]
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: chart CHART RELEASE NAMESPACE [KEY=VALUE…]")
		os.Exit(2)
	}
	if err := render(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func render(chart, release, namespace string, sets []string) error {
	values, err := read(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return err
	}
	meta, err := read(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		return err
	}
	for _, set := range sets {
		if err := override(values, set); err != nil {
			return err
		}
	}
	data := map[string]any{
		"Values":  values,
		"Release": map[string]any{"Name": release, "Namespace": namespace},
		"Chart":   map[string]any{"AppVersion": meta["appVersion"], "Name": meta["name"]},
	}
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := one(file, data); err != nil {
			return err
		}
	}
	return nil
}

func read(path string) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	return values, yaml.Unmarshal(text, &values)
}

// override sets one value, as --set does for plain values.
func override(values map[string]any, set string) error {
	key, text, ok := strings.Cut(set, "=")
	if !ok {
		return fmt.Errorf("%q is no KEY=VALUE", set)
	}
	path := strings.Split(key, ".")
	for _, name := range path[:len(path)-1] {
		inner, ok := values[name].(map[string]any)
		if !ok {
			return fmt.Errorf("the chart has no %q", key)
		}
		values = inner
	}
	last := path[len(path)-1]
	if _, ok := values[last]; !ok {
		return fmt.Errorf("the chart has no %q", key)
	}
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		return err
	}
	values[last] = value
	return nil
}

func one(file string, data any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	parsed, err := template.New(filepath.Base(file)).Funcs(functions).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return err
	}
	var out strings.Builder
	if err := parsed.Execute(&out, data); err != nil {
		return err
	}
	if strings.TrimSpace(out.String()) != "" {
		fmt.Printf("---\n%s\n", strings.TrimSpace(out.String()))
	}
	return nil
}

var functions = template.FuncMap{
	"default": func(other, value any) any {
		if value == nil || reflect.ValueOf(value).IsZero() {
			return other
		}
		return value
	},
	"quote": func(value any) string { return fmt.Sprintf("%q", fmt.Sprint(value)) },
	"toYaml": func(value any) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	},
	"nindent": func(count int, text string) string {
		pad := "\n" + strings.Repeat(" ", count)
		return pad + strings.ReplaceAll(text, "\n", pad)
	},
	"join": func(with string, list []any) string {
		words := make([]string, len(list))
		for i, item := range list {
			words[i] = fmt.Sprint(item)
		}
		return strings.Join(words, with)
	},
	"regexFind": func(pattern, text string) (string, error) {
		compiled, err := regexp.Compile(pattern)
		if err != nil {
			return "", err
		}
		return compiled.FindString(text), nil
	},
}
