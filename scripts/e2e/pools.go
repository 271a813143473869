package main

// modes are the modes of the pods' network in which Kubernetes' own tests run: the columns of the table.
var modes = []string{"underlay", "overlay", "mixed"} // read only

// pools are the NetworkPools of each mode. Pods of an overlay reach the API server, which is no node, with the
// address of their node.
var pools = map[string]string{ // read only
	"underlay": `
apiVersion: network.edgeway.io/v1alpha1
kind: NetworkPool
metadata: {name: all}
spec: {nodeSelector: all(), mode: underlay}
`,
	"overlay": `
apiVersion: network.edgeway.io/v1alpha1
kind: NetworkPool
metadata: {name: all}
spec: {nodeSelector: all(), mode: overlay, sourceNAT: {enabled: true}}
`,
	"mixed": `
apiVersion: network.edgeway.io/v1alpha1
kind: NetworkPool
metadata: {name: one}
spec: {nodeSelector: kubernetes.io/hostname=node-1, mode: underlay}
---
apiVersion: network.edgeway.io/v1alpha1
kind: NetworkPool
metadata: {name: two}
spec: {nodeSelector: kubernetes.io/hostname=node-2, mode: auto}
---
apiVersion: network.edgeway.io/v1alpha1
kind: NetworkPool
metadata: {name: three}
spec: {nodeSelector: kubernetes.io/hostname=node-3, mode: overlay, sourceNAT: {enabled: true}}
`,
}

// clusterDNS is CoreDNS, with what it needs to serve the names of Services and pods.
const clusterDNS = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
      errors
      health
      ready
      kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
      }
      cache 30
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      priorityClassName: system-cluster-critical
      dnsPolicy: Default
      containers:
      - name: coredns
        image: edgeway.test/coredns:1
        imagePullPolicy: Never
        args: [-conf, /config/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 2, timeoutSeconds: 5}
        volumeMounts: [{name: config, mountPath: /config}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns, kubernetes.io/name: CoreDNS}}
spec:
  clusterIP: 10.96.0.10
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
`

// queueRules ask kube-network-policies in the order of its own rules (syncNFTablesRules in its controller.go).
// They are for iptables-restore.
const queueRules = `*mangle
SPECIFIC
-A POSTROUTING -m owner --uid-owner 0 -j ACCEPT
-A POSTROUTING -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A POSTROUTING -j NFQUEUE --queue-num 98
COMMIT
`
