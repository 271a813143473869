package main

import (
	"fmt"
	"regexp"
	"strings"
)

// versionInfo is the output of VERSION (SPEC section 5, "VERSION Success").
type versionInfo struct {
	CNIVersion string   `json:"cniVersion"`
	Supported  []string `json:"supportedVersions"`
}

func parseVersions(out []byte) (v versionInfo, err error) {
	err = decodeOnly(out, &v)
	return v, err
}

func (t *T) versionOf(kind, stdin string) (versionInfo, reply) {
	r := t.exec(call{kind: kind, env: t.netEnv("VERSION"), stdin: []byte(stdin)})
	v, err := parseVersions(r.stdout)
	if !r.ok() || err != nil {
		t.Errorf("%s", r.said())
	}
	return v, r
}

func versionChecks() []check {
	semver := regexp.MustCompile(`^\d+\.\d+\.\d+$`)
	return []check{
		{id: "version.answer", level: must, section: "2,5", asks: "VERSION prints one JSON object with cniVersion and supportedVersions", each: true, run: func(t *T) {
			for _, kind := range t.net.types() {
				v, _ := t.versionOf(kind, fmt.Sprintf(`{"cniVersion":%q}`, t.net.version))
				if v.CNIVersion == "" || len(v.Supported) == 0 {
					t.Errorf("%s: a key is missing: %+v", kind, v)
				}
			}
		}},
		{id: "version.echo", level: must, section: "5", asks: "VERSION's cniVersion is the value specified on input", each: true, since: "1.0.0", run: versionEcho},
		{id: "version.echo-old", level: should, section: "5", asks: "VERSION's cniVersion is the value specified on input, in versions before 1.0.0 as well", run: func(t *T) {
			for _, v := range []string{"0.3.1", "0.4.0"} {
				t.net.version = v
				versionEcho(t)
			}
		}},
		{id: "version.supported", level: must, section: "5", asks: "supportedVersions lists valid versions, each of them once", run: func(t *T) {
			for _, kind := range t.net.types() {
				v, _ := t.versionOf(kind, `{"cniVersion":"1.0.0"}`)
				seen := map[string]bool{}
				for _, s := range v.Supported {
					if !semver.MatchString(s) || seen[s] {
						t.Errorf("%s: %q is no version or listed twice", kind, s)
					}
					seen[s] = true
				}
			}
		}},
		{id: "version.same-always", level: robust, section: "5", asks: "supportedVersions does not depend on the version of the request", run: func(t *T) {
			for _, kind := range t.net.types() {
				a, _ := t.versionOf(kind, `{"cniVersion":"0.4.0"}`)
				b, _ := t.versionOf(kind, `{"cniVersion":"1.1.0"}`)
				if strings.Join(a.Supported, " ") != strings.Join(b.Supported, " ") {
					t.Errorf("%s: %v and %v", kind, a.Supported, b.Supported)
				}
			}
		}},
		{id: "version.bare-environment", level: must, section: "2", asks: "VERSION needs no variable but CNI_COMMAND", run: func(t *T) {
			for _, kind := range t.net.types() {
				r := t.exec(call{kind: kind, env: map[string]string{"CNI_COMMAND": "VERSION"}, stdin: []byte(`{"cniVersion":"1.0.0"}`)})
				if _, err := parseVersions(r.stdout); !r.ok() || err != nil {
					t.Errorf("%s", r.said())
				}
			}
		}},
		{id: "version.future-input", level: robust, section: "2", asks: "VERSION answers a runtime that speaks a newer version", run: func(t *T) {
			for _, kind := range t.net.types() {
				if v, _ := t.versionOf(kind, `{"cniVersion":"99.1.0"}`); len(v.Supported) == 0 {
					t.Errorf("%s lists nothing", kind)
				}
			}
		}},
		{id: "version.bad-stdin", level: robust, section: "5", asks: "VERSION with broken or missing JSON on input answers, or fails with an error object", run: func(t *T) {
			for _, stdin := range []string{"", "{", "null", `"1.1.0"`, `{"cniVersion":1}`} {
				r := t.exec(call{kind: t.net.types()[0], env: t.netEnv("VERSION"), stdin: []byte(stdin)})
				if _, fault := r.fault(); r.ok() == fault {
					t.Errorf("%q: %s", stdin, r.said())
				}
				if r.ok() {
					_, err := parseVersions(r.stdout)
					t.OK(err, fmt.Sprintf("VERSION of %q", stdin))
				}
			}
		}},
		{id: "version.other-keys", level: robust, section: "2", asks: "VERSION ignores further keys on input", run: func(t *T) {
			for i, kind := range t.net.types()[:len(t.net.plugins)] {
				r := t.exec(call{kind: kind, env: t.netEnv("VERSION"), stdin: t.net.request(min(i, len(t.net.plugins)-1), nil)})
				t.wants(r, "VERSION with the whole configuration")
			}
		}},
		{id: "version.no-effect", level: robust, section: "2", asks: "VERSION changes nothing on the host", run: func(t *T) {
			before := t.snap()
			for _, kind := range t.net.types() {
				t.versionOf(kind, `{"cniVersion":"1.0.0"}`)
			}
			t.sameAs(before, "VERSION")
		}},
		{id: "version.unsupported", level: must, section: "2,5", asks: "ADD in a version that is not supported fails", run: func(t *T) {
			before := t.snap()
			for _, v := range []string{"99.0.0", "1.99.0", "not-a-version"} {
				t.refuses(t.exec(t.pod().main("ADD", object{"cniVersion": v})), "ADD with cniVersion "+v)
			}
			t.nothingNew(before, "the refused ADD")
		}},
		{id: "version.unsupported-code", level: should, section: "5", asks: "ADD in a version that is not supported fails with code 1", run: func(t *T) {
			t.refuses(t.exec(t.pod().main("ADD", object{"cniVersion": "99.0.0"})), "ADD with cniVersion 99.0.0", 1)
		}},
		{id: "version.check-before-0.4", level: should, section: "2", asks: "CHECK before 0.4.0 is refused with code 1", run: func(t *T) {
			t.tooOld("CHECK", "0.3.1")
		}},
		{id: "version.gc-before-1.1", level: should, section: "2", asks: "GC before 1.1.0 is refused with code 1", since: "1.1.0", run: func(t *T) {
			t.tooOld("GC", "1.0.0")
		}},
		{id: "version.status-before-1.1", level: should, section: "2", asks: "STATUS before 1.1.0 is refused with code 1", since: "1.1.0", run: func(t *T) {
			t.tooOld("STATUS", "1.0.0")
		}},
	}
}

func versionEcho(t *T) {
	for _, kind := range t.net.types() {
		v, _ := t.versionOf(kind, fmt.Sprintf(`{"cniVersion":%q}`, t.net.version))
		if v.CNIVersion != t.net.version {
			t.Errorf("%s: asked in %s, says %s", kind, t.net.version, v.CNIVersion)
		}
	}
}

// tooOld calls a command in a version that does not have the command.
func (t *T) tooOld(command, version string) {
	p := t.pod()
	t.net.version = version
	t.add(p)
	c := p.main(command, p.withPrev())
	if command != "CHECK" {
		c.env = t.netEnv(command)
		c.stdin = t.net.request(0, onlyValid(p))
	}
	t.refuses(t.exec(c), command+" in "+version, 1)
}
