{{/* Sets in one WorkflowTemplate (.document) what the values (.root) decide. Writes nothing: the document is changed in place. */}}
{{- define "stagecoach.deploy" -}}
{{- $root := .root -}}
{{- $document := .document -}}
{{- $spec := $document.spec -}}
{{- $_ := set $document.metadata "labels" (merge (default dict $document.metadata.labels) (fromYaml (include "stagecoach.labels" $root))) -}}
{{- $_ := set $spec "serviceAccountName" $root.Values.serviceAccount.name -}}
{{- with $root.Values.images.pullSecrets -}}
{{- $secrets := list -}}
{{- range . -}}{{- $secrets = append $secrets (dict "name" .) -}}{{- end -}}
{{- $_ := set $spec "imagePullSecrets" $secrets -}}
{{- end -}}
{{- if not $root.Values.notify.enabled -}}{{- $_ := unset $spec "hooks" -}}{{- end -}}
{{- range $parameter := $spec.arguments.parameters -}}
{{- if eq $parameter.name "store" -}}{{- $_ := set $parameter "value" $root.Values.store.url -}}{{- end -}}
{{- end -}}
{{- range $template := $spec.templates -}}
{{- if $template.container -}}
{{- include "stagecoach.deployTemplate" (dict "root" $root "template" $template) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The same for one template with a container; its label says whose image it is. */}}
{{- define "stagecoach.deployTemplate" -}}
{{- $root := .root -}}
{{- $template := .template -}}
{{- $container := $template.container -}}
{{- $labels := $template.metadata.labels -}}
{{- $stage := get $labels "stagecoach/stage" -}}
{{- $image := default $container.image (get $root.Values.images $stage) -}}
{{- $_ := set $container "image" $image -}}
{{- range $variable := $container.env -}}
{{- if eq $variable.name "STAGECOACH_IMAGE_DIGEST" -}}{{- $_ := set $variable "value" $image -}}{{- end -}}
{{- end -}}
{{- $_ := set $container "imagePullPolicy" $root.Values.images.pullPolicy -}}
{{- with get $root.Values.resources $stage -}}
{{- $_ := set $container "resources" (mustMergeOverwrite (default dict $container.resources) (deepCopy .)) -}}
{{- end -}}
{{- $renamed := dict "stagecoach-store" (include "stagecoach.secretName" $root) "stagecoach-hub" $root.Values.hub.tokenSecret "stagecoach-notify" $root.Values.notify.secret -}}
{{- range $source := $container.envFrom -}}
{{- with $source.secretRef -}}
{{- $_ := set . "name" (default .name (get $renamed .name)) -}}
{{- end -}}
{{- end -}}
{{- range $volume := $template.volumes -}}
{{- with $volume.secret -}}
{{- $_ := set . "secretName" (default .secretName (get $renamed .secretName)) -}}
{{- end -}}
{{- end -}}
{{- with $root.Values.store.caBundle.secret -}}
{{- $_ := set $template "volumes" (append (default list $template.volumes) (dict "name" "store-ca" "secret" (dict "secretName" .))) -}}
{{- $_ := set $container "volumeMounts" (append (default list $container.volumeMounts) (dict "name" "store-ca" "mountPath" "/etc/stagecoach/ca" "readOnly" true)) -}}
{{- end -}}
{{- range $key, $value := $root.Values.labels -}}{{- $_ := set $labels $key $value -}}{{- end -}}
{{- if eq $stage "train" -}}
{{- include "stagecoach.deployTrain" (dict "values" $root.Values.train "template" $template) -}}
{{- end -}}
{{- end }}

{{/* Where train pods may run. */}}
{{- define "stagecoach.deployTrain" -}}
{{- $template := .template -}}
{{- with .values.nodeSelector -}}
{{- $_ := set $template "nodeSelector" (merge (deepCopy .) (default dict $template.nodeSelector)) -}}
{{- end -}}
{{- with .values.tolerations -}}
{{- $_ := set $template "tolerations" (concat (default list $template.tolerations) .) -}}
{{- end -}}
{{- with .values.affinity -}}{{- $_ := set $template "affinity" . -}}{{- end -}}
{{- with .values.priorityClassName -}}{{- $_ := set $template "priorityClassName" . -}}{{- end -}}
{{- with .values.kueueQueue -}}{{- $_ := set $template.metadata.labels "kueue.x-k8s.io/queue-name" . -}}{{- end -}}
{{- end }}
