package cluster

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// The output of Kubernetes' own types is read, as YAML and as JSON.
func TestKubernetesTypes(t *testing.T) {
	created := metav1.NewTime(time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC))
	node := corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "n1", UID: "u", ResourceVersion: "12", CreationTimestamp: created,
			Labels:      map[string]string{"ASN": "65010", "on": "yes", "empty": "", "octal": "010"},
			Annotations: map[string]string{"a": "{\"b\": [1, 2]}\n# no comment\n--- no document\n"},
			ManagedFields: []metav1.ManagedFieldsEntry{{
				Manager: "kubelet", Operation: "Update", Time: &created,
				FieldsV1: metav1.NewFieldsV1(`{"f:status":{".":{}}}`),
			}},
		},
		Spec: corev1.NodeSpec{
			PodCIDR: "10.10.1.0/24", PodCIDRs: []string{"10.10.1.0/24", "fd00:10:1::/64"}, ProviderID: "x://n1",
			Taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule, TimeAdded: &created}},
		},
		Status: corev1.NodeStatus{
			Capacity:  corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.11"}, {Type: corev1.NodeInternalIP, Address: "fd00::11"}},
			Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse},
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: created},
			},
			Images: []corev1.ContainerImage{{Names: []string{"a", "b"}, SizeBytes: 1 << 40}},
		},
	}
	secret := corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: "bgp", Namespace: "kube-system"},
		Data:       map[string][]byte{"password": []byte(password), "binary": {0, 1, 255}},
		Type:       corev1.SecretTypeOpaque,
	}
	peer := `{"apiVersion":"network.openyurt.io/v1alpha1","kind":"BGPPeer","metadata":{"name":"p"},"spec":{"localSpeakers":["n1"],
		"localAsNumber":65010,"peerIP":"10.0.0.1","peerAsNumber":65001,"nodeSelector":"all()","authPassword":{"secretKeyRef":{"name":"bgp","key":"password"}}}}`
	for _, file := range []string{"f.yaml", "f.json"} {
		t.Run(file, func(t *testing.T) {
			marshal := yaml.Marshal
			if isJSON(file) {
				marshal = func(v any) ([]byte, error) { return json.MarshalIndent(v, "", "    ") }
			}
			var files []manifest
			for name, v := range map[string]any{"a-" + file: node, "b-" + file: secret, "c-" + file: json.RawMessage(peer)} {
				text, err := marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, readManifest(name, text))
			}
			got := merge(files, World{})
			want := World{
				Nodes: []Node{{
					Name: "n1", Labels: node.Labels, Origin: "a-" + file,
					Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("fd00::11")},
					PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24"), netip.MustParsePrefix("fd00:10:1::/64")},
				}},
				Peerings: []Peering{{
					Kind: kindPeer, Name: "p", LocalASN: 65010, Selector: mustSelector(t, "all()"), Origin: "c-" + file,
					Speakers: []Speaker{{Node: "n1", Peers: []Peer{{Address: netip.MustParseAddr("10.0.0.1"), ASN: 65001, Password: &SecretKey{Name: "bgp", Key: "password"}}}}},
				}},
				Secrets: []Secret{{Name: "bgp", Data: secret.Data, Origin: "b-" + file}},
			}
			if d := cmp.Diff(want, got, byValue); d != "" {
				t.Errorf("want (-) and got (+):\n%s", d)
			}
		})
	}
}
