{{- define "s3.name" -}}
{{- if contains "s3-operator" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-s3-operator" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "s3.selector" -}}
app.kubernetes.io/name: s3-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "s3.labels" -}}
{{ include "s3.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: s3
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "s3.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "s3.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* The image of a program: (list CONTEXT PROGRAM). */}}
{{- define "s3.image" -}}
{{- $root := index . 0 }}
{{- $image := $root.Values.image }}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ index . 1 }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* Takes out of a schema, in place, what old servers do not take: CEL rules and empty texts as defaults. */}}
{{- define "s3.withoutCel" -}}
{{- if kindIs "map" . }}
{{- $_ := unset . "x-kubernetes-validations" }}
{{- if and (hasKey . "default") (eq (toJson .default) "\"\"") }}{{ $_ := unset . "default" }}{{ end }}
{{- range $key, $value := . }}{{ include "s3.withoutCel" $value }}{{ end }}
{{- else if kindIs "slice" . }}
{{- range . }}{{ include "s3.withoutCel" . }}{{ end }}
{{- end }}
{{- end }}

{{/* What the operator reads from its file: operator/controller/src/options.rs, `Settings`. */}}
{{- define "s3.settings" -}}
{{- $settings := dict }}
{{- with .Values.workers.labels }}{{ $_ := set $settings "labels" . }}{{ end }}
{{- with .Values.workers.annotations }}{{ $_ := set $settings "annotations" . }}{{ end }}
{{- with .Values.workers.storageClass }}{{ $_ := set $settings "storageClass" . }}{{ end }}
{{- with .Values.workers.gateway.storage }}{{ $_ := set $settings "gatewayStorage" . }}{{ end }}
{{- with .Values.workers.gateway.resources }}{{ $_ := set $settings "gatewayResources" . }}{{ end }}
{{- if .Values.networkPolicy.enabled }}
{{- $network := dict "enabled" true "operatorPods" (include "s3.selector" . | fromYaml) }}
{{- $_ := set $network "dnsRanges" .Values.networkPolicy.dnsRanges }}
{{- $_ := set $network "storageRanges" .Values.networkPolicy.storageRanges }}
{{- $_ := set $network "scraperNamespaces" .Values.networkPolicy.scraperNamespaces }}
{{- /* the label that every namespace has since 1.21; before, the operator's pods are known by their own */}}
{{- if semverCompare ">=1.21-0" .Capabilities.KubeVersion.Version }}
{{- $_ := set $network "operatorNamespace" (dict "kubernetes.io/metadata.name" .Release.Namespace) }}
{{- end }}
{{- $_ := set $settings "network" $network }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{/* What the operator does in the namespaces that it serves: exactly the calls that it makes. */}}
{{- define "s3.rules" -}}
- apiGroups: [searchagent.dev]
  resources: [retrieverindices, s3trainingjobs, evalruns]
  verbs: [get, list, watch]
# its finalizer, by which an index serves on while it is used
- apiGroups: [searchagent.dev]
  resources: [retrieverindices]
  verbs: [patch]
# ttlSecondsAfterFinished
- apiGroups: [searchagent.dev]
  resources: [s3trainingjobs, evalruns]
  verbs: [delete]
# the evaluations on a job's schedule, suspended with their job
- apiGroups: [searchagent.dev]
  resources: [evalruns]
  verbs: [create, patch]
- apiGroups: [searchagent.dev]
  resources: [retrieverindices/status, s3trainingjobs/status, evalruns/status]
  verbs: [patch]
# asked for by servers that guard owners which block deletion (OwnerReferencesPermissionEnforcement)
- apiGroups: [searchagent.dev]
  resources: [retrieverindices/finalizers, s3trainingjobs/finalizers, evalruns/finalizers]
  verbs: [update]
# made once and never changed
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
# claims are made and never taken away: they go with their owner
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.autoscaling.enabled }}
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch, create, patch, delete]
# quota that is asked back is given back
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads/status]
  verbs: [patch]
{{- end }}
{{- end }}
