package plugin

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"github.com/edgeway-cni/edgeway/daemon/api"
)

const newestVersion = "1.1.0"

// versions are the supported protocol versions, oldest first; read-only.
var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", newestVersion}

// versionIndex orders versions; -1 for an unknown version.
func versionIndex(v string) int { return slices.Index(versions, v) }

// probeVersion plans the verb VERSION: it echoes cniVersion (SPEC 1.1.0 section 5, "Version").
func probeVersion(stdin []byte) (version string, answer step, err error) {
	var in struct {
		CNIVersion string `json:"cniVersion"`
	}
	if len(stdin) > 0 {
		if err := json.Unmarshal(stdin, &in); err != nil {
			return "", nil, fault(codeDecode, "decode standard input: %w", err).next(`VERSION wants {"cniVersion": "%s"}`, newestVersion)
		}
	}
	in.CNIVersion = cmp.Or(in.CNIVersion, newestVersion)
	out, err := json.Marshal(struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}{in.CNIVersion, versions})
	if err != nil {
		panic("strings always marshal: " + err.Error())
	}
	return in.CNIVersion, func(*Node, context.Context) (api.Reply, error) { return api.Reply{Output: append(out, '\n')}, nil }, nil
}
