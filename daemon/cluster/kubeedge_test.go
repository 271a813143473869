package cluster

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgeway-cni/edgeway/scripts/kube"
	"github.com/edgeway-cni/edgeway/scripts/lab"
)

// kubeEdge is KubeEdge's cloudcore, and the edgecore of the node n1 without edged, which would need a container runtime. Its URL is the
// metaserver's. edgeway does not build the programs: the variables EDGEWAY_CLOUDCORE and EDGEWAY_EDGECORE name them.
type kubeEdge struct {
	edgeProxy
	cloud *lab.Process
}

// What cloudcore needs of the API server, without KubeEdge's schemas.
const kubeEdgeKind = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]ss.reliablesyncs.kubeedge.io}
spec:
  group: reliablesyncs.kubeedge.io
  names: {kind: %[2]s, plural: %[1]ss, singular: %[1]s}
  scope: %[3]s
  versions: [{name: v1alpha1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
`

const cloudcoreConfig = `
apiVersion: cloudcore.config.kubeedge.io/v1alpha1
kind: CloudCore
commonConfig: {monitorServer: {bindAddress: "127.0.0.1:%[4]s"}}
kubeAPIConfig: {kubeConfig: %[1]s}
modules:
  cloudHub:
    advertiseAddress: [127.0.0.1]
    tlsCAFile: %[2]s/ca.crt
    tlsCAKeyFile: %[2]s/ca.key
    tlsCertFile: %[2]s/server.crt
    tlsPrivateKeyFile: %[2]s/server.key
    websocket: {enable: true, address: 127.0.0.1, port: %[5]s}
    https: {enable: true, address: 127.0.0.1, port: %[6]s}
    unixsocket: {enable: false, address: "unix://%[2]s/cloudcore.sock"}
  deviceController: {enable: false}
  dynamicController: {enable: true}
  iptablesManager: {enable: false}
`

const edgecoreConfig = `
apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {dataSource: %[2]s/edgecore.db}
modules:
  edged: {enable: false, hostnameOverride: n1}
  edgeHub:
    heartbeat: 1
    token: %[1]s
    tlsCaFile: %[2]s/edge-ca.crt
    tlsCertFile: %[2]s/edge.crt
    tlsPrivateKeyFile: %[2]s/edge.key
    httpServer: https://127.0.0.1:%[6]s
    websocket: {enable: true, server: "127.0.0.1:%[5]s"}
  metaManager: {metaServer: {enable: true, server: "127.0.0.1:%[3]s"}}
  deviceTwin: {enable: false}
  eventBus: {enable: false}
`

func startKubeEdge(t *testing.T, cp *kube.ControlPlane) *kubeEdge {
	t.Helper()
	mustApply(t, cp, fmt.Sprintf(kubeEdgeKind, "objectsync", "ObjectSync", "Namespaced")+fmt.Sprintf(kubeEdgeKind, "clusterobjectsync", "ClusterObjectSync", "Cluster"))
	dir, ports := t.TempDir(), freePorts(t, 4)
	file := func(name, text, first string) string {
		path := filepath.Join(dir, name)
		mustWrite(t, path, fmt.Sprintf(text, first, dir, ports[0], ports[1], ports[2], ports[3]))
		return path
	}
	k := &kubeEdge{edgeProxy: edgeProxy{"http://127.0.0.1:" + ports[0]}}
	var token []byte
	k.cloud = startProgram(t, filepath.Join(dir, "cloudcore.log"), func() string {
		text, err := cp.Kubectl("get", "secret", "-n", "kubeedge", "tokensecret", "-o", "jsonpath={.data.tokendata}")
		if err != nil {
			return err.Error()
		}
		if token, err = base64.StdEncoding.DecodeString(text); err != nil {
			t.Fatal(err)
		}
		return ""
	}, os.Getenv("EDGEWAY_CLOUDCORE"), "--config="+file("cloudcore.yaml", cloudcoreConfig, cp.AdminKubeconfig()))
	startProgram(t, filepath.Join(dir, "edgecore.log"), func() string { return serves(k.url + "/api/v1/nodes/n1") },
		os.Getenv("EDGEWAY_EDGECORE"), "--config="+file("edgecore.yaml", edgecoreConfig, string(token)))
	return k
}

// A node of KubeEdge whose kubeconfig names edgecore's metaserver, first with the cloud and then without it: nothing that the
// metaserver says counts, what is known stays, and the problem names the next step, which is then done.
func TestKubeEdgeMetaserver(t *testing.T) {
	if os.Getenv("EDGEWAY_CLOUDCORE") == "" || os.Getenv("EDGEWAY_EDGECORE") == "" {
		t.Skip("EDGEWAY_CLOUDCORE and EDGEWAY_EDGECORE name no programs")
	}
	cp := startShop(t)
	k := startKubeEdge(t, cp)
	way, err := cp.ServiceAccountOn("n1", "kube-system", "edgeway")
	if err != nil {
		t.Fatal(err)
	}
	direct, err := os.ReadFile(way)
	if err != nil {
		t.Fatal(err)
	}
	options := KubernetesOptions{Kubeconfig: way, Node: "n1", UserAgent: "edgewayd/test"}
	c := newClientOf(t, options, patient())
	c.untilIs(t, shopKnown)

	mustWrite(t, way, kubeconfigOf(k.url, ""))
	for _, when := range []string{"cloudcore answers", "the cloud is away"} {
		k.logAnswers(t, when)
		c.knownStays(t, options, shopKnown, "such as KubeEdge's metaserver")
		if err := writeStatus(t, options, "overlay"); err == nil {
			t.Errorf("%s: a write is taken for done", when)
		}
		newClientOf(t, options, patient()).until(t, "an error of a node that knows nothing", func(_ World, err error) bool {
			return err != nil && strings.Contains(err.Error(), "such as KubeEdge's metaserver")
		})
		if err := k.cloud.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "answer from the node's database", false, func() bool {
			_, _, text := k.answer(t, http.MethodGet, "/"+Path(kindPool), "")
			return strings.Contains(text, "shop")
		})
	}
	kubectl(t, cp, "delete", "networkpool", "shop")
	mustWrite(t, way, string(direct))
	c.untilIs(t, strings.Replace(shopKnown, " NetworkPool/shop", "", 1))
}
