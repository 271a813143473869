{{/* What the values change in a pod of ours, which is that of deploy/kubernetes. */}}
{{- define "edgeway.pod" -}}
{{- $top := .top }}{{ $template := .template }}{{ $pod := $template.spec }}
{{- range concat ($pod.initContainers | default list) $pod.containers }}
{{- $_ := set . "image" (printf "%s:%s" $.image ($top.Values.image.tag | default $top.Chart.AppVersion)) }}
{{- $_ := set . "imagePullPolicy" ($top.Values.image.pullPolicy | default "IfNotPresent") }}
{{- end }}
{{- if $top.Values.imagePullSecrets }}{{ $_ := set $pod "imagePullSecrets" $top.Values.imagePullSecrets }}{{ end }}
{{- $annotations := merge (dict "edgeway/config" (sha256sum .config)) ($top.Values.podAnnotations | default dict) }}
{{- $_ := set $template.metadata "annotations" $annotations }}
{{- end }}

{{/* edgewayd.yaml. A PodMonitor needs metrics that another machine can reach. */}}
{{- define "edgeway.config" -}}
{{- $config := deepCopy (.Values.config | default dict) }}
{{- if .Values.podMonitor.enabled }}{{ $config = merge $config (dict "metrics" (printf "0.0.0.0:%v" .Values.podMonitor.port)) }}{{ end }}
{{- toYaml $config }}
{{- end }}

{{/* The daemons' DaemonSet: component is "edgewayd", or "edgewayd-speaker" where these are separate. */}}
{{- define "edgeway.daemonset" -}}
{{- $v := .top.Values }}
{{- $ds := .top.Files.Get "files/daemonset.yaml" | fromYaml }}
{{- $template := $ds.spec.template }}{{ $pod := $template.spec }}{{ $main := first $pod.containers }}
{{- if $v.keepCanary }}
{{- $patch := .top.Files.Get "files/keep-canary.yaml" | fromYaml }}
{{- $_ := set $pod "initContainers" (concat $patch.spec.template.spec.initContainers $pod.initContainers) }}
{{- end }}
{{- include "edgeway.pod" (dict "top" .top "template" $template "image" $v.image.repository "config" (include "edgeway.config" .top)) }}
{{- if $v.podMonitor.enabled }}{{ $_ := set $main "ports" (list (dict "name" "metrics" "containerPort" $v.podMonitor.port)) }}{{ end }}
{{- $_ := set $ds.metadata "namespace" .top.Release.Namespace }}
{{- $_ := set $pod "tolerations" ($v.tolerations | default list) }}
{{- $_ := set $pod "priorityClassName" ($v.priorityClassName | default "") }}
{{- $_ := set $pod "nodeSelector" (deepCopy ($v.nodeSelector | default dict)) }}
{{- $_ := set $main "resources" ($v.resources | default dict) }}
{{- if eq .component "edgewayd-speaker" }}
{{- $_ := set $ds.metadata "name" .component }}
{{- range list $ds.metadata.labels $ds.spec.selector.matchLabels $template.metadata.labels }}
{{- $_ := set . "app.kubernetes.io/name" $.component }}
{{- end }}
{{- $_ := set $pod "serviceAccountName" "edgeway-speaker" }}
{{- $_ := set $pod.nodeSelector "edgeway-speaker" "true" }}
{{- else if $v.speakers.separate }}
{{- $term := first $pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms }}
{{- $_ := set $term "matchExpressions" (append $term.matchExpressions (dict "key" "edgeway-speaker" "operator" "NotIn" "values" (list "true"))) }}
{{- $_ := set $ds.spec.updateStrategy.rollingUpdate "maxUnavailable" $v.speakers.maxUnavailable }}
{{- end }}
{{ toYaml $ds }}
{{- end }}
