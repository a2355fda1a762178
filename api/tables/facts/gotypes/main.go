// Gotypes prints what only the published Go types know about the Kubernetes API: for every field the JSON name, the
// protobuf number, and what becomes of its zero value (pointer or value, omitempty, omitzero). "cargo xtask codegen"
// merges it with the published OpenAPI. Run it once for a new Kubernetes release:
//
//	go run . > ../go-types.json
package main

import (
	"encoding/json"
	"log"
	"os"
	"reflect"
	"strconv"
	"strings"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	certificates "k8s.io/api/certificates/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	events "k8s.io/api/events/v1"
	flowcontrol "k8s.io/api/flowcontrol/v1"
	networking "k8s.io/api/networking/v1"
	node "k8s.io/api/node/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	resource "k8s.io/api/resource/v1"
	scheduling "k8s.io/api/scheduling/v1"
	storage "k8s.io/api/storage/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// Field is one line of the result.
type Field struct {
	JSON   string `json:"json,omitempty"`
	Number int    `json:"number,omitempty"`
	Type   string `json:"type"`
	Zero   string `json:"zero"`
}

// special types have a JSON form of their own.
var special = map[string]string{
	"io.k8s.apimachinery.pkg.apis.meta.v1.Time":       "time",
	"io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime":  "microtime",
	"io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1":   "raw",
	"io.k8s.apimachinery.pkg.runtime.RawExtension":    "raw",
	"io.k8s.apimachinery.pkg.api.resource.Quantity":   "quantity",
	"io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON":                         "raw",
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray":       "schema-or-array",
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool":        "schema-or-bool",
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "schema-or-strings",
}

type marshaler interface{ Marshal() ([]byte, error) }

var marshals = reflect.TypeOf((*marshaler)(nil)).Elem()

type walk map[string][]Field

func name(t reflect.Type) string {
	return "io." + strings.Replace(strings.Replace(t.PkgPath(), "k8s.io", "k8s", 1), "/", ".", -1) + "." + t.Name()
}

// expr writes a type: scalars by name, []T, {}T for maps, ![]T for a list in a message of its own, @name for structs.
func (w walk) expr(t reflect.Type) string {
	if s := special[name(t)]; s != "" {
		return s
	}
	switch t.Kind() {
	case reflect.Pointer:
		return w.expr(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		list := "[]" + w.expr(t.Elem())
		if reflect.PointerTo(t).Implements(marshals) {
			return "!" + list
		}
		return list
	case reflect.Map:
		return "{}" + w.expr(t.Elem())
	case reflect.Struct:
		w.add(t)
		return "@" + name(t)
	case reflect.Int, reflect.Int64:
		return "int64"
	case reflect.Interface:
		return "any"
	}
	return t.Kind().String()
}

func zero(t reflect.Type, options []string) string {
	has := func(option string) bool {
		for _, o := range options {
			if o == option {
				return true
			}
		}
		return false
	}
	nilable := t.Kind() == reflect.Slice || t.Kind() == reflect.Map
	switch {
	case has("omitzero") && t.Kind() == reflect.Struct:
		return "omit"
	case t.Kind() == reflect.Pointer && has("omitempty"):
		return "keep"
	case t.Kind() == reflect.Struct:
		return "write"
	case has("omitempty"):
		return "omit"
	case nilable || t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface:
		return "null"
	}
	return "write"
}

func (w walk) add(t reflect.Type) {
	if _, known := w[name(t)]; known {
		return
	}
	w[name(t)] = []Field{}
	fields := []Field{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag := strings.Split(f.Tag.Get("json"), ",")
		if !f.IsExported() || tag[0] == "-" {
			continue
		}
		number := 0
		if parts := strings.Split(f.Tag.Get("protobuf"), ","); len(parts) > 1 {
			number, _ = strconv.Atoi(parts[1])
		}
		field := Field{JSON: tag[0], Number: number, Type: w.expr(f.Type), Zero: zero(f.Type, tag[1:])}
		if f.Anonymous && tag[0] == "" {
			field.Zero = "inline"
		} else if tag[0] == "" {
			continue
		}
		fields = append(fields, field)
	}
	w[name(t)] = fields
}

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		admissionregistration.AddToScheme, apps.AddToScheme, authentication.AddToScheme, authorization.AddToScheme,
		autoscalingv1.AddToScheme, autoscalingv2.AddToScheme, batch.AddToScheme, certificates.AddToScheme,
		coordination.AddToScheme, core.AddToScheme, discovery.AddToScheme, events.AddToScheme,
		flowcontrol.AddToScheme, networking.AddToScheme, node.AddToScheme, policy.AddToScheme, rbac.AddToScheme,
		resource.AddToScheme, scheduling.AddToScheme, storage.AddToScheme, apiextensions.AddToScheme,
		apiregistration.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			log.Fatal(err)
		}
	}
	types := walk{}
	for _, t := range scheme.AllKnownTypes() {
		if strings.HasPrefix(t.PkgPath(), "k8s.io/") && !strings.HasSuffix(t.PkgPath(), "/internalversion") && t.Name() != "InternalEvent" {
			types.add(t)
		}
	}
	types.add(reflect.TypeOf(meta.PartialObjectMetadata{}))
	types.add(reflect.TypeOf(meta.PartialObjectMetadataList{}))
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(types); err != nil {
		log.Fatal(err)
	}
}
