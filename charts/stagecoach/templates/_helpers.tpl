{{/* Labels of every object. */}}
{{- define "stagecoach.labels" -}}
app.kubernetes.io/name: stagecoach
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The Secret that pods read credentials from; empty where an identity of the cloud does it. */}}
{{- define "stagecoach.secretName" -}}
{{- if .Values.credentials.externalSecret.enabled -}}stagecoach-store
{{- else -}}{{ .Values.credentials.existingSecret }}
{{- end -}}
{{- end }}

{{/* Bucket of the store: s3://BUCKET/PREFIX. */}}
{{- define "stagecoach.bucket" -}}
{{- index (splitList "/" (trimPrefix "s3://" .Values.store.url)) 0 -}}
{{- end }}

{{/* The recipes whose templates are installed, as JSON. */}}
{{- define "stagecoach.recipes" -}}
{{- $shipped := list -}}
{{- range $path, $_ := .Files.Glob "files/workflowtemplates/*.yaml" -}}
{{- $shipped = append $shipped (trimSuffix ".yaml" (base $path)) -}}
{{- end -}}
{{- range .Values.recipes.enabled -}}
{{- if not (has . $shipped) -}}
{{- fail (printf "recipes.enabled names %q, which this chart does not ship; it ships %s" . (join ", " $shipped)) -}}
{{- end -}}
{{- end -}}
{{- toJson (default $shipped .Values.recipes.enabled) -}}
{{- end }}

{{- define "stagecoach.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stagecoach.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What cannot be said by the schema: combinations. */}}
{{- define "stagecoach.check" -}}
{{- if and .Values.requireArgo (not (.Capabilities.APIVersions.Has "argoproj.io/v1alpha1")) -}}
{{- fail "this cluster has no Argo Workflows (argoproj.io/v1alpha1): install it first, or set requireArgo=false to render without a cluster" -}}
{{- end -}}
{{- if and .Values.credentials.existingSecret .Values.credentials.externalSecret.enabled -}}
{{- fail "credentials.existingSecret and credentials.externalSecret.enabled exclude each other: name one source of credentials" -}}
{{- end -}}
{{- if and .Values.credentials.externalSecret.enabled (or (not .Values.credentials.externalSecret.secretStoreRef.name) (not .Values.credentials.externalSecret.remoteKey)) -}}
{{- fail "credentials.externalSecret needs secretStoreRef.name and remoteKey" -}}
{{- end -}}
{{- if and .Values.kueue.createLocalQueue (or (not .Values.kueue.clusterQueue) (not .Values.train.kueueQueue)) -}}
{{- fail "kueue.createLocalQueue needs kueue.clusterQueue and train.kueueQueue" -}}
{{- end -}}
{{- range $name, $image := .Values.images -}}
{{- if and (kindIs "string" $image) (hasSuffix ":latest" $image) -}}
{{- fail (printf "images.%s is %s: a tag that moves would change a template that never changes; name a digest or a fixed tag" $name $image) -}}
{{- end -}}
{{- end -}}
{{- $installed := fromJsonArray (include "stagecoach.recipes" .) -}}
{{- range .Values.cron -}}
{{- if not (has .recipe $installed) -}}
{{- fail (printf "cron %q runs recipe %q, which is not installed; installed are %s" .name .recipe (join ", " $installed)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.sensor.enabled (not (has .Values.sensor.recipe $installed)) -}}
{{- fail (printf "sensor.recipe is %q, which is not installed; installed are %s" .Values.sensor.recipe (join ", " $installed)) -}}
{{- end -}}
{{- end }}
