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
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "s3.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "s3.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
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

{{/* What the operator does in the namespaces that it serves: exactly the calls that it makes. */}}
{{- define "s3.rules" -}}
- apiGroups: [searchagent.dev]
  resources: [retrieverindices, s3trainingjobs, evalruns]
  verbs: [get, list, watch, patch]
- apiGroups: [searchagent.dev]
  resources: [retrieverindices/status, s3trainingjobs/status, evalruns/status]
  verbs: [patch]
# owners of children block their deletion
- apiGroups: [searchagent.dev]
  resources: [retrieverindices/finalizers, s3trainingjobs/finalizers, evalruns/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
