package main

// topology is a shop with a LAN behind a switch, and the cluster's control plane beyond the switch.
//
//	node-1  node-2  node-3            node-1 and node-2 are speakers
//	  .11     .12     .13
//	───┴───────┴───────┴──── 172.16.0.0/24 ──┐
//	                                      switch   BIRD, AS 65001
//	control plane ─────────── 10.99.0.0/24 ──┘
//	  10.99.0.10
const topology = `
switches:
- name: switch
  asn: 65001
  links:
  - {lan: shop, addrs: [172.16.0.1/24, "fd00:172::1/64"]}
  - {lan: wan, addrs: [10.99.0.1/24, "fd00:99::1/64"]}
  neighbors:
  - {name: node1, address: 172.16.0.11, asn: 65010, password: mySecretValue}
  - {name: node2, address: 172.16.0.12, asn: 65010, password: mySecretValue}
hosts:
- name: control-plane
  links: [{lan: wan, addrs: [10.99.0.10/24, "fd00:99::10/64"]}]
  routes: [{to: 0.0.0.0/0, via: 10.99.0.1}, {to: "::/0", via: "fd00:99::1"}]
nodes:
- name: node-1
  links: [{lan: shop, addrs: [172.16.0.11/24, "fd00:172::11/64"]}]
  routes: [{to: 0.0.0.0/0, via: 172.16.0.1}, {to: "::/0", via: "fd00:172::1"}]
- name: node-2
  links: [{lan: shop, addrs: [172.16.0.12/24, "fd00:172::12/64"]}]
  routes: [{to: 0.0.0.0/0, via: 172.16.0.1}, {to: "::/0", via: "fd00:172::1"}]
- name: node-3
  links: [{lan: shop, addrs: [172.16.0.13/24, "fd00:172::13/64"]}]
  routes: [{to: 0.0.0.0/0, via: 172.16.0.1}, {to: "::/0", via: "fd00:172::1"}]
`

const (
	controlPlaneAddr = "10.99.0.10"
	nodeLabel        = "alibabacloud.com/nodepool-id=npxxx"
)

// bgpPeer is a BGPPeer in the form in which a user of Terway Edge writes it.
const bgpPeer = `
apiVersion: network.openyurt.io/v1alpha1
kind: BGPPeer
metadata:
  name: peer
spec:
  localSpeakers:
    - node-1
    - node-2
  localAsNumber: 65010
  peerIP: 172.16.0.1
  peerAsNumber: 65001
  nodeSelector: alibabacloud.com/nodepool-id=npxxx
  # Optional.
  authPassword:
    secretKeyRef:
      name: bgp-secret
      key: password
---
# Optional.
apiVersion: v1
kind: Secret
metadata:
  name: bgp-secret
  namespace: kube-system
type: Opaque
data:
  password: bXlTZWNyZXRWYWx1ZQ==
`

// workloads are the pods of a DaemonSet and of a StatefulSet, which keep their names. The third kind is
// staticPod.
const workloads = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {CONTAINER}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: till}
spec:
  replicas: 3
  serviceName: till
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: till}}
  template:
    metadata: {labels: {app: till}}
    spec:
      {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "till"}}}]}}, CONTAINER}
`

// staticPod is a file in a directory that the kubelet reads. The kubelet starts it without an API server.
const staticPod = `
apiVersion: v1
kind: Pod
metadata: {name: door}
spec: {CONTAINER}
`

// container is the same in all pods. It is the first process of its PID namespace, so it ignores SIGTERM.
const container = `"dnsPolicy": "Default", "terminationGracePeriodSeconds": 1,
  "containers": [{"name": "web", "image": "edgeway.test/busybox:1", "imagePullPolicy": "Never",
    "command": ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"],
    "readinessProbe": {"httpGet": {"path": "/cgi-bin/who", "port": 80}, "periodSeconds": 2, "timeoutSeconds": 5}}]`

// kubeletConfig stops the kubelet from changing settings outside of its namespaces: iptables rules, the OOM
// score. Only this run can reach the kubelet's port.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
staticPodPath: /etc/kubernetes/manifests
cgroupDriver: cgroupfs
cgroupRoot: CGROUP
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
resolvConf: ""
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%", imagefs.available: "0%", memory.available: "0%"}
nodeStatusUpdateFrequency: 2s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
`

// proxyConfig leaves the settings of connection tracking alone, because they belong to the whole machine.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.conf}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`
